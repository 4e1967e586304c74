// One picture as it is trained: what is cut off at each resolution, and the caption, as the service says them.
const cropBox = (picture, crop) => {
  const [left, top, right, bottom] = crop.box;
  const at = `left: ${(100 * left) / picture.width}%; top: ${(100 * top) / picture.height}%; width: ${(100 * (right - left)) / picture.width}%; height: ${(100 * (bottom - top)) / picture.height}%`;
  return make("span", { class: "crop", style: at });
};

const trainedDialog = (acts) => {
  let file = null;
  let place = 0;
  const dialog = make("dialog", { class: "enlarged trained", "aria-label": "As trained" });

  const cropRow = (picture, crop, number) =>
    make(
      "button",
      { class: "button small", type: "button", "aria-pressed": String(number === place), onclick: () => { place = number; show(); } },
      make("strong", { text: `${crop.resolution_px} px` }),
      make("span", { text: `${crop.width} × ${crop.height}` }),
      make("small", { text: `${crop.cut_off || "nothing"} cut off` }),
    );

  const show = () => {
    const { picture, number, count, trigger, buckets } = acts.find(file);
    place = Math.min(place, picture.crops.length - 1);
    const crop = picture.crops[place];
    const image = make("img", { src: absolute(picture.full_url), alt: picture.source });
    const cut = make("div", { class: "cut", style: `--aspect: ${picture.width / picture.height}` }, image, crop && cropBox(picture, crop));
    const bucket = crop && buckets.find((one) => one.width === crop.width && one.height === crop.height);
    const about = [
      `${picture.width} × ${picture.height} px`,
      bucket && `${counted(bucket.pictures, "crop")} of this size among all pictures`,
      picture.repeats > 1 && `comes ${picture.repeats} times`,
      picture.is_excluded && "excluded",
      ...picture.notes,
    ];
    const focused = dialog.contains(document.activeElement) && document.activeElement.textContent;
    const step = (text, label, by) => make("button", { class: "button small", type: "button", text, "aria-label": label, disabled: !acts.beside(file, by), onclick: () => move(by) });
    dialog.replaceChildren(
      make("header", {}, make("h3", { text: picture.source }), step("‹", "Previous picture", -1), make("span", { class: "quiet", text: `${number + 1} of ${count}` }), step("›", "Next picture", 1)),
      cut,
      make("div", { class: "crops", role: "group", "aria-label": "Resolutions" }, ...picture.crops.map((one, index) => cropRow(picture, one, index))),
      make("p", { class: "caption" }, ...marked(picture.caption || "Not described yet", trigger)),
      make("p", { class: "quiet", text: about.filter(Boolean).join(" · ") }),
      make("div", { class: "actions" }, button("Edit caption", "", () => { dialog.close(); acts.edit(file); }), button("Close", "primary", () => dialog.close())),
    );
    const kept = focused && [...dialog.querySelectorAll("button:not(:disabled)")].find((one) => one.textContent === focused);
    if (kept) kept.focus();
  };

  const move = (by) => {
    const next = acts.beside(file, by);
    if (!next) return;
    file = next;
    show();
  };
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) move(by);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => acts.closed(file));

  const open = (which) => {
    file = which;
    place = Infinity;
    show();
    dialog.showModal();
  };
  return { dialog, open, refresh: () => dialog.open && show() };
};
