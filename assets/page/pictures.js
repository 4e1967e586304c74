// The pictures of a draft with their captions as they will be trained. Descriptions come in while the page is open.
let shown = "";
let expected = 0;
const summary = make("p", { class: "counts", role: "status" });
const notes = make("div", {});
const grid = make("div", { class: "grid" });
const ignored = make("details", { class: "ignored", hidden: true });
const view = make("div", { class: "pictures" }, summary, notes, grid, ignored);
const ORIGINS = { zip: "from the ZIP", described: "described", waiting: "being described …", plain: "plain" };

const card = (picture) => {
  const made = make(
    "figure",
    { class: `picture ${picture.origin}`, title: [picture.source, ...picture.notes].join("\n") },
    make("img", { src: absolute(picture.url), alt: picture.source, loading: "lazy" }),
    make("figcaption", {}, make("span", { text: picture.caption }), make("small", { text: ORIGINS[picture.origin] })),
  );
  if (picture.notes.length) made.querySelector("small").textContent += ` · ${picture.notes.join(", ")}`;
  return made;
};

const show = (told) => {
  summary.textContent = told.counts;
  notes.replaceChildren(...told.warnings.map((text) => make("div", { class: "notice warn", text })));
  const known = grid.children;
  told.pictures.forEach((picture, place) => {
    const made = JSON.stringify(picture);
    if (known[place] && known[place].dataset.made === made) return;
    const next = card(picture);
    next.dataset.made = made;
    if (known[place]) known[place].replaceWith(next);
    else grid.append(next);
  });
  while (known.length > told.pictures.length) grid.lastChild.remove();
  ignored.hidden = !told.ignored.length;
  const count = told.ignored.length;
  ignored.replaceChildren(
    make("summary", { text: `${count} ${count === 1 ? "file was" : "files were"} ignored` }),
    make("ul", {}, ...told.ignored.map((one) => make("li", { text: `${one.file}: ${one.reason}` }))),
  );
};

const step = async () => {
  keepIn(view);
  const asked = props.value && props.value.run ? props.value : null;
  view.hidden = !asked;
  if (!asked) {
    shown = "";
    grid.replaceChildren();
    return 1000;
  }
  if (!isShown()) return 1000;
  setAddress("draft", asked.run);
  const wanted = JSON.stringify(asked);
  if (wanted === shown && !expected) return 500;
  try {
    const told = await server.pictures(asked);
    if (told.error) {
      summary.textContent = `${told.error.message} ${told.error.hint}`;
      expected = 0;
    } else {
      show(told);
      expected = told.is_waiting ? 1 : 0;
    }
    shown = wanted;
  } catch {
    summary.textContent = "Connection lost, trying again…";
    shown = "";
    return 2000;
  }
  return 1200;
};

const hurry = repeat(step);
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(hurry, 200);
});
