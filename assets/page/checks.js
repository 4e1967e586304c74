// What the checks find in a draft's pictures and captions, the worst first, each with the button that mends it.
const LOOK_AGAIN = 3000;
const GROUPS = { problem: ["problem", "problems"], warning: ["warning", "warnings"], hint: ["hint", "hints"] };
let told = null;
let shown = "";
let mended = "";
let lookAgain = 0;

const heading = make("h3", { text: "Checks" });
const summary = make("span", { class: "quiet" });
const passes = make("p", { class: "quiet" });
const news = make("span", { role: "status" });
const undo = button("Undo", "small", () => act("undo_mend", { title: mended }));
const done = make("div", { class: "notice", hidden: true }, news, undo);
const trouble = make("div", { class: "notice warn", role: "alert", hidden: true });
const worst = make("div", { class: "findings" });
const hints = make("details", { hidden: true });
const view = make("section", { class: "checks", "aria-label": "Checks", hidden: true }, make("div", { class: "line" }, heading, summary), passes, done, trouble, worst, hints);

const counted = (count, [one, many]) => `${count} ${count === 1 ? one : many}`;

const pictureOf = ({ name, note, url }) =>
  make("li", { title: [name, note].filter(Boolean).join(": ") }, make("img", { src: absolute(url), alt: name, loading: "lazy" }), note && make("small", { text: note }));

const findingOf = (finding) => {
  const hasNotes = finding.pictures.some((one) => one.note);
  const more = finding.more ? make("li", { class: "more", text: `and ${finding.more} more` }) : null;
  const pictures = finding.pictures.map(pictureOf);
  const names = finding.names.map((name) => make("li", {}, make("small", { text: name })));
  const items = make("ul", { class: hasNotes || names.length ? "noted" : "" }, ...pictures, ...names, more);
  const mend = finding.mend && told.is_draft && button(finding.mend, "small", () => act("mend", { kind: finding.kind }));
  return make(
    "article",
    { class: `finding a-${finding.severity}` },
    make("div", { class: "line" }, make("span", { class: "severity", text: finding.severity }), make("h4", { text: finding.title })),
    make("p", { text: finding.words }),
    items.children.length ? items : null,
    mend ? make("div", { class: "actions" }, mend) : null,
  );
};

const show = (answer) => {
  told = answer;
  const found = (severity) => told.findings.filter((finding) => finding.severity === severity);
  const counts = Object.keys(GROUPS).filter((severity) => found(severity).length);
  summary.textContent = counts.map((severity) => counted(found(severity).length, GROUPS[severity])).join(", ") || "nothing found that would spoil this";
  passes.textContent = told.passes;
  worst.replaceChildren(...[...found("problem"), ...found("warning")].map(findingOf));
  hints.hidden = !found("hint").length;
  const label = make("summary", { text: counted(found("hint").length, GROUPS.hint) });
  hints.replaceChildren(label, make("div", { class: "findings" }, ...found("hint").map(findingOf)));
  if (mended !== told.undo) mended = "";
  done.hidden = !mended;
  news.textContent = mended ? `Done: ${mended}.` : "";
};

const warn = (error) => {
  trouble.hidden = !error;
  trouble.textContent = error ? `${error.message} ${error.hint}` : "";
};

const act = async (name, values) => {
  for (const one of view.querySelectorAll("button")) one.disabled = true;
  try {
    const answer = await server[name]({ ...props.value, ...values });
    warn(answer.error);
    if (!answer.error) {
      mended = answer.mended || "";
      show(answer);
      if (mended) undo.focus();
      document.dispatchEvent(new Event("pictures-changed"));
    }
  } catch {
    warn({ message: "Connection lost.", hint: "Try again." });
  }
  for (const one of view.querySelectorAll("button")) one.disabled = false;
};

const step = async () => {
  keepIn(view);
  const asked = props.value && props.value.run ? props.value : null;
  view.hidden = !asked || !told;
  if (!asked) {
    told = null;
    shown = "";
    return 1000;
  }
  if (!isShown()) return 1000;
  const wanted = JSON.stringify(asked);
  if (wanted === shown && Date.now() < lookAgain) return 500;
  try {
    const answer = await server.checks(wanted === shown ? { ...asked, known: told.known } : asked);
    warn(answer.error);
    if (!answer.error && !answer.is_same) show(answer);
    view.hidden = !told && !answer.error;
    shown = answer.error ? "" : wanted;
    lookAgain = Date.now() + LOOK_AGAIN;
  } catch {
    lookAgain = Date.now() + LOOK_AGAIN;
    return 2000;
  }
  return 500;
};

const hurry = repeat(step);
const look = () => {
  lookAgain = 0;
  hurry();
};
document.addEventListener("pictures-changed", look);
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(look, 300);
});
