// The card of a run's samples: a row for each prompt, a column for each step; one of them enlarged on demand.
const sampleGallery = () => {
  const known = new Map();
  let enlarged = null;
  const card = make("section", { class: "card samples", "aria-label": "Samples", hidden: true });
  const dialog = make("dialog", { class: "enlarged", "aria-label": "Sample" });

  const enlarge = (sample) => {
    enlarged = sample;
    dialog.replaceChildren(
      make("img", { src: absolute(sample.url), alt: sample.prompt }),
      make("p", { text: `Step ${sample.step} · ${sample.prompt}` }),
      make(
        "div",
        { class: "actions" },
        button("Earlier", "", () => move(-1)),
        button("Later", "", () => move(1)),
        button("Close", "primary", () => dialog.close()),
      ),
    );
    if (!dialog.open) dialog.showModal();
  };
  const move = (by) => {
    const row = [...known.values()].filter((one) => one.index === enlarged.index).sort((a, b) => a.step - b.step);
    const next = row[row.findIndex((one) => one.step === enlarged.step) + by];
    if (next) enlarge(next);
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  const row = (sample) => {
    const found = card.querySelector(`[data-index="${sample.index}"]`);
    if (found) return found;
    const made = make("div", { class: "row", "data-index": sample.index }, make("p", { text: sample.prompt }), make("div", { class: "strip" }));
    const after = [...card.querySelectorAll(".row")].find((one) => Number(one.dataset.index) > sample.index);
    card.insertBefore(made, after || null);
    return made;
  };

  const add = (sample) => {
    const key = `${sample.step}/${sample.index}`;
    const isNew = !known.has(key);
    known.set(key, sample);
    if (!isNew) {
      const picture = card.querySelector(`[data-key="${key}"] img`);
      if (picture) picture.src = absolute(sample.url);
      return;
    }
    card.hidden = false;
    const strip = row(sample).querySelector(".strip");
    const wasAtEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
    const figure = make(
      "button",
      { class: "sample", type: "button", "data-key": key, "data-step": sample.step, onclick: () => enlarge(known.get(key)) },
      make("img", { src: absolute(sample.url), alt: `${sample.prompt}, step ${sample.step}` }),
      make("span", { text: sample.step === 0 ? "before" : `step ${sample.step}` }),
    );
    const later = [...strip.children].find((one) => Number(one.dataset.step) > sample.step);
    strip.insertBefore(figure, later || null);
    if (wasAtEnd) strip.scrollLeft = strip.scrollWidth;
  };

  const clear = () => {
    known.clear();
    card.hidden = true;
    card.replaceChildren(make("h3", { text: "Samples" }));
    if (dialog.open) dialog.close();
  };
  clear();
  return { card, dialog, add, clear };
};
