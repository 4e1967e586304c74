// The panel of a draft's pictures: shown as they will be trained, and edited in place. All that is kept is on the server;
// here is only what is being typed, and what could not be saved yet.
const AGAIN = 1200;
const LOOK_AGAIN = 5000;
const LOST = { message: "The connection was lost.", hint: "What you type is kept here, and saved when it is back." };
const RESTARTED = { message: "The service was restarted and no longer knows this page.", hint: "What you typed is kept and saved then.", isOver: true };
let asked = null;
let told = null;
let shown = "";
let isLost = false;
let lookAgain = 0;
const inView = new Set();

const summary = make("p", { class: "counts" });
const pace = make("span", { class: "quiet" });
const bar = make("progress", { class: "bar", max: 1, hidden: true, "aria-label": "Descriptions" });
const news = make("span", { class: "quiet news", role: "status" });
const trouble = make("div", { class: "notice warn", role: "alert", hidden: true });
const notes = make("div", { class: "notes" });
const nothing = make("p", { class: "empty", text: "No picture is like that.", hidden: true });
const report = make("details", { class: "report", hidden: true });

// ---- captions that are typed and not saved yet outlive a refresh of the page

const unsaved = new Map();
const states = new Map();
const storeName = () => `captions ${asked.run}`;

const keep = () => {
  try {
    if (unsaved.size) sessionStorage.setItem(storeName(), JSON.stringify([...unsaved]));
    else sessionStorage.removeItem(storeName());
  } catch {} // a browser that keeps nothing
};

const recall = () => {
  unsaved.clear();
  states.clear();
  try {
    for (const [file, text] of JSON.parse(sessionStorage.getItem(storeName())) || []) {
      unsaved.set(file, text);
      states.set(file, { kind: "lost", words: "Not saved yet." });
    }
    isLost = unsaved.size > 0;
  } catch {}
};

const setState = (file, kind, words) => {
  states.set(file, { kind, words });
  cards.refresh(file);
  if (kind !== "saved") return;
  setTimeout(() => {
    if (states.get(file)?.kind !== "saved") return;
    states.delete(file);
    cards.refresh(file);
  }, 2500);
};

// ---- what is asked of the service, one after the other, so that each answer adds to the one before

let last = Promise.resolve();
const ask = (name, values = {}) => {
  const { run } = asked;
  last = last.then(async () => {
    if (asked.run !== run) return null;
    const known = told && { known: told.known, revision: told.revision };
    const answer = await server[name]({ ...asked, ...known, ...values }).catch(() => null);
    if (!answer) return { error: (await whyItFailed()) === "lost" ? LOST : RESTARTED, isLost: true };
    if (asked.run !== run) return null;
    if ("said" in answer) document.dispatchEvent(new CustomEvent("pictures-changed", { detail: view }));
    if (answer.pictures) show({ ...answer, pictures: answer.pictures.map((picture, place) => picture || told.pictures[place]) });
    return answer;
  });
  return last;
};

const say = (text) => (news.textContent = text);
const warn = (error) => {
  trouble.hidden = !error;
  const again = error && error.isOver && button("Load the page again", "small", () => location.reload());
  trouble.replaceChildren(...(error ? [make("span", { text: `${error.message} ${error.hint}` }), again] : []).filter(Boolean));
};

const change = async (what, values = {}) => {
  const answer = await ask("change_pictures", { what, ...values });
  if (!answer) return false;
  warn(answer.error);
  if (answer.error) hurry();
  else say(answer.said);
  return !answer.error;
};

const save = async (file, text) => {
  unsaved.set(file, text);
  keep();
  setState(file, "saving", "saving …");
  const answer = await ask("change_pictures", { what: "caption", files: [file], text });
  if (!answer) return;
  if (answer.error) {
    setState(file, answer.isLost ? "lost" : "failed", `Not saved. ${answer.error.message}`);
    warn(answer.error);
    return hurry();
  }
  if (unsaved.get(file) === text) unsaved.delete(file);
  keep();
  setState(file, "saved", "saved ✓");
  say("Saved.");
};

// ---- what the cards and the bar may do

const find = (file) => told.pictures.find((picture) => picture.file === file);
const listed = () => (told ? told.pictures.filter((picture) => inView.has(picture.file)) : []);
const chosenOnes = () => {
  const files = new Set(cards.chosen());
  return listed().filter((picture) => files.has(picture.file));
};
// What a key or button is about: the selected pictures, else the one where the focus is.
const meant = () => (cards.chosen().length ? cards.chosen() : [cards.current()].filter(Boolean));

const cards = cardGrid({
  state: (file) => states.get(file) || {},
  typed: (file) => (unsaved.has(file) ? unsaved.get(file) : null),
  type: (file, text) => {
    unsaved.set(file, text);
    keep();
  },
  save,
  mayEdit: () => told.is_draft,
  retry: (file) => save(file, unsaved.get(file)),
  discard: (file) => {
    unsaved.delete(file);
    states.delete(file);
    keep();
    cards.refresh(file);
  },
  chosen: () => tools.follow(told, chosenOnes()),
  open: (file) => trained.open(file),
});

const trained = trainedDialog({
  find: (file) => ({ picture: find(file), number: listed().findIndex((one) => one.file === file), count: listed().length, trigger: told.trigger, buckets: told.buckets }),
  beside: (file, by) => {
    const row = listed();
    const next = row[row.findIndex((one) => one.file === file) + by];
    return next && next.file;
  },
  edit: (file) => cards.edit(file),
  closed: (file) => cards.isEditing() || cards.go(file),
});

const exclude = () => {
  const files = meant();
  const isExcluded = !files.every((file) => find(file).is_excluded);
  return files.length && change(isExcluded ? "exclude" : "include", { files });
};

const tools = toolBar({
  look: () => {
    inView.clear();
    if (told) arrange();
  },
  overlay: (isOn) => view.classList.toggle("with-crop", isOn),
  enlarge: (isOn) => view.classList.toggle("wide", isOn),
  select: () => cards.chooseAll(!cards.chosen().length),
  scope: () => {
    const chosen = chosenOnes();
    return { texts: (chosen.length ? chosen : listed()).map((picture) => picture.text), isChosen: chosen.length > 0 };
  },
  exclude,
  describe: () => meant().length && change("describe", { files: meant() }),
  undo: () => change("undo", {}),
  redo: () => change("redo", {}),
  replace: (values) => change("replace", { files: scoped(), ...values }),
  add: (prefix, suffix) => change("add", { files: scoped(), prefix, suffix }),
  upload: async (file) => {
    const taken = await upload(file).catch(() => null);
    if (taken) await change("upload", { path: taken.path });
    else warn(LOST);
  },
  download: async () => {
    const answer = await ask("download");
    warn(answer && answer.error);
    if (answer && answer.url) make("a", { href: absolute(answer.url), download: true }).click();
  },
});
const scoped = () => (cards.chosen().length ? cards.chosen() : listed().map((picture) => picture.file));

const view = make("div", { class: "pictures" }, summary, make("div", { class: "line" }, pace, news), bar, trouble, notes, tools.bar, cards.grid, nothing, report, trained.dialog);

view.addEventListener("keydown", (event) => {
  if (!told || !told.is_draft || event.target.matches("input:not([type=checkbox]), textarea, select") || event.target.closest("dialog")) return;
  const key = event.key.toLowerCase();
  const isMeta = event.ctrlKey || event.metaKey;
  if (isMeta && key === "z") change(event.shiftKey ? "redo" : "undo", {});
  else if (isMeta && key === "y") change("redo", {});
  else if (isMeta && key === "a") cards.chooseAll(true);
  else if (isMeta || event.altKey) return;
  else if (["delete", "backspace"].includes(key)) exclude();
  else if (key === "r") meant().length && change("describe", { files: meant() });
  else if (key === "t") meant().length && trained.open(cards.current() || meant()[0]);
  else if (key === "/") tools.search.focus();
  else if (key === "?") tools.help();
  else if (key === "escape") tools.shrink();
  else return;
  event.preventDefault();
});

// ---- what is shown

// A picture that was found stays while it is worked on, even when it does not fit the filter any more.
const arrange = () => {
  for (const picture of told.pictures) if (tools.matches(picture)) inView.add(picture.file);
  const pictures = listed();
  cards.show(pictures, told.trigger);
  nothing.hidden = pictures.length > 0;
  tools.follow(told, chosenOnes());
};

// Every file of the upload: what was left out comes first, then what was mended. It never changes, so it is told once.
const showReport = (rows) => {
  const kinds = ["ignored", "repaired", "used"].map((what) => [what, rows.filter((row) => row.what === what)]);
  const many = (found) => found.reduce((sum, row) => sum + row.count, 0);
  report.hidden = !rows.length;
  report.replaceChildren(
    make("summary", { text: `Files: ${kinds.filter(([, found]) => found.length).map(([what, found]) => `${many(found)} ${what}`).join(", ")}` }),
    ...kinds.filter(([, found]) => found.length).map(([what, found]) =>
      make("ul", { class: what }, ...found.map((row) =>
        make("li", { text: [row.count > 1 ? `${row.file} (${row.count})` : row.file, row.words].filter(Boolean).join(": ") }))),
    ),
  );
};

const show = (answer) => {
  told = answer;
  summary.textContent = told.counts;
  bar.hidden = !told.progress;
  if (told.progress) bar.value = told.progress.done / told.progress.of;
  pace.textContent = told.progress ? told.progress.words : "";
  notes.replaceChildren(...told.warnings.map((text) => make("div", { class: "notice warn", text })));
  view.classList.toggle("closed", !told.is_draft);
  arrange();
  trained.refresh();
  if (told.report) showReport(told.report);
};

const open = (value) => {
  cards.clear();
  inView.clear();
  told = null;
  shown = "";
  asked = value;
  warn(null);
  say("");
  recall();
};

const step = async () => {
  keepIn(view);
  const value = props.value && props.value.run ? props.value : null;
  view.hidden = !value;
  if (!value) return 1000;
  if (!asked || asked.run !== value.run) open(value);
  asked = value;
  if (!isShown()) return 1000;
  setAddress("draft", asked.run);
  const wanted = JSON.stringify(asked);
  if (wanted === shown && Date.now() < lookAgain) return 500;
  const answer = await ask("pictures");
  if (!answer) return 500;
  if (answer.isLost || wanted !== shown) warn(answer.error);
  if (answer.isLost) return lost();
  if (isLost) found();
  shown = wanted;
  lookAgain = Date.now() + (answer.is_waiting ? AGAIN : LOOK_AGAIN);
  return 500;
};

const lost = () => {
  isLost = true;
  shown = "";
  return 2000;
};

// The connection is back: save what could not be saved.
const found = () => {
  isLost = false;
  warn(null);
  for (const [file, { kind }] of states) if (kind === "lost") save(file, unsaved.get(file));
};

const hurry = repeat(step);
// Another part of the page has changed the pictures.
document.addEventListener("pictures-changed", ({ detail }) => {
  if (detail === view) return;
  lookAgain = 0;
  hurry();
});
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(hurry, 200);
});
