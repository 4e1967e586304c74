// The card “Try it”: pictures drawn with a run's LoRA, the newest first. They are drawn by the service whether or not the
// page stays open, and are there again after a refresh.
const tryingCard = (ask) => {
  let images = [];
  let chosen = null;
  const known = new Map();
  const field = (label, input, ...more) => make("label", {}, make("span", { text: label }, ...more), input);
  const prompt = make("textarea", { rows: 2, maxlength: 2000, required: true });
  const strength = make("input", { type: "range", min: 0, max: 2, step: 0.05, value: 1 });
  const strengthShown = make("output", { text: "1" });
  const seed = make("input", { inputmode: "numeric", placeholder: "random", autocomplete: "off" });
  const size = make("select");
  const press = make("button", { class: "button primary", text: "Draw" });
  const message = make("p", { role: "status" });
  const form = make(
    "form",
    {},
    field("Prompt", prompt),
    make(
      "div",
      { class: "options" },
      field("Strength of the LoRA: ", strength, strengthShown),
      field("Seed", seed),
      field("Size", size),
      press,
    ),
    message,
  );
  const strip = make("div", { class: "drawings" });
  const kept = make("p", { class: "quiet", hidden: true });
  const card = make("section", { class: "card trying", "aria-label": "Try it", hidden: true }, make("h3", { text: "Try it" }), form, strip, kept);
  const dialog = make("dialog", { class: "enlarged", "aria-label": "Picture" });

  const setStrength = (value) => {
    strength.value = value;
    strengthShown.textContent = strength.value;
  };
  strength.addEventListener("input", () => setStrength(strength.value));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => (chosen = null));

  const asking = async (pressed, what, values) => {
    pressed.disabled = true;
    const told = await ask(what, values);
    pressed.disabled = false;
    message.textContent = told.error ? `${told.error.message} ${told.error.hint}` : "";
    return !told.error;
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    asking(press, "draw", { prompt: prompt.value, strength: Number(strength.value), seed: seed.value, size: size.value });
  });

  const inWords = (image) => (image.strength ? `strength ${image.strength}` : "without the LoRA");
  const about = (image) => `${image.prompt}, seed ${image.seed}, ${inWords(image)}`;
  const picture = (image) => {
    if (image.url) return make("img", { src: absolute(image.url), alt: about(image) });
    const bar = image.error ? null : make("progress", { class: "bar", max: 1, value: image.progress, "aria-label": "Progress" });
    return make("span", { class: "blank" }, make("span", { text: image.error || image.words }), bar);
  };

  // What the base draws with the same prompt, seed and size.
  const twin = (image) =>
    image.strength && images.find((one) => !one.strength && !one.error && ["prompt", "seed", "width", "height"].every((name) => one[name] === image[name]));

  const compare = async (image, pressed) => {
    if (!twin(image) && !(await asking(pressed, "compare", { image: image.id }))) return;
    enlarge(image);
  };
  const again = (image) => {
    prompt.value = image.prompt;
    seed.value = image.seed;
    setStrength(image.strength);
    const same = [...size.options].find((one) => one.value === `${image.width}x${image.height}`);
    if (same) size.value = same.value;
    dialog.close();
    prompt.focus();
  };
  const enlarge = (image) => {
    chosen = image.id;
    const base = twin(image);
    const shown = base ? [base, image] : [image];
    const figures = shown.map((one) => make("figure", {}, picture(one), make("figcaption", { text: inWords(one) })));
    dialog.replaceChildren(
      make("div", { class: base ? "pair" : "" }, ...figures),
      make("p", { text: `${image.prompt} · seed ${image.seed} · ${image.width} × ${image.height}` }),
      make("div", { class: "actions" }, button("Use these settings", "", () => again(image)), button("Close", "primary", () => dialog.close())),
    );
    if (!dialog.open) dialog.showModal();
  };

  const drawing = (image) => {
    const open = image.url
      ? make("button", { class: "sample", type: "button", "aria-label": `Enlarge: ${about(image)}`, onclick: () => enlarge(image) }, picture(image))
      : picture(image);
    const save = image.url && make("a", { class: "button small", href: absolute(image.url), download: image.file, text: "Download", "aria-label": `Download: ${about(image)}` });
    const small = (text, words, onclick) => make("button", { class: "button small", type: "button", text, title: words, "aria-label": `${words}: ${about(image)}`, onclick });
    const beside = image.url && image.strength && small("Compare", "Compare with the base", (event) => compare(image, event.target));
    const gone = small("×", image.url || image.error ? "Remove" : "Cancel", (event) => asking(event.target, "remove", { image: image.id }));
    return make(
      "figure",
      {},
      open,
      make("figcaption", {}, make("span", { class: "prompt", title: image.prompt, text: image.prompt }), make("small", { text: `seed ${image.seed} · ${inWords(image)}` })),
      make("div", { class: "actions" }, save, beside, gone),
    );
  };

  const showImages = () => {
    const made = images.map((image) => {
      const text = JSON.stringify(image);
      if (!known.has(image.id) || known.get(image.id).text !== text) known.set(image.id, { text, figure: drawing(image) });
      return known.get(image.id).figure;
    });
    if (made.length !== strip.childElementCount || made.some((figure, place) => strip.children[place] !== figure)) strip.replaceChildren(...made);
    const image = images.find((one) => one.id === chosen);
    if (!image) return;
    const seen = JSON.stringify([image, twin(image)]);
    if (dialog.dataset.seen !== seen) enlarge(image);
    dialog.dataset.seen = seen;
  };

  // Returns whether one of them is still being drawn.
  const show = (told) => {
    card.hidden = !told;
    if (!told) return false;
    if (!size.options.length) {
      prompt.value = told.prompt;
      size.append(...told.sizes.map((one) => make("option", { value: one.value, text: one.title })));
    }
    images = told.images;
    kept.hidden = !images.length;
    kept.textContent = `Pictures are deleted after ${told.kept}: download what you like.`;
    showImages();
    return images.some((image) => !image.url && !image.error);
  };
  const clear = () => {
    images = [];
    known.clear();
    if (dialog.open) dialog.close();
    size.replaceChildren();
    strip.replaceChildren();
    seed.value = "";
    setStrength(1);
    message.textContent = "";
    card.hidden = true;
  };
  return { card, dialog, show, clear };
};
