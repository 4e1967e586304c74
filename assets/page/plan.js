// What a run with these settings needs on this machine, asked for anew as the form changes.
let shown = "";
let isExpected = false;
const base = make("p", { class: "base" });
const verdict = make("p", { class: "verdict", role: "status" });
const trouble = make("div", { class: "notice bad", hidden: true });
const ladder = make("details", { class: "ladder", hidden: true });
const view = make("div", { class: "plan" }, base, verdict, trouble, ladder);

const show = (told) => {
  const link = (text, href) => make("a", { href, target: "_blank", rel: "noreferrer", text });
  base.replaceChildren();
  if (told.base) {
    base.append(told.base.words, " ", link(told.base.licence, told.base.licence_url), `. ${told.base.terms}`);
  }
  verdict.textContent = told.verdict;
  trouble.hidden = !told.problem;
  if (told.problem) trouble.replaceChildren(make("strong", { text: told.problem.message }), make("span", { text: told.problem.hint }));
  ladder.hidden = !told.rungs.length;
  const row = (rung) =>
    make(
      "tr",
      { class: rung.is_chosen ? "chosen" : rung.fits ? null : "too-large" },
      make("td", {}, make("span", { text: rung.words }), make("small", { text: rung.cost })),
      make("td", { text: rung.memory }),
      make("td", { text: rung.time }),
    );
  const head = make("tr", {}, ...["Way to train", "Memory", "Time"].map((text) => make("th", { scope: "col", text })));
  ladder.replaceChildren(
    make("summary", { text: "What each step down would cost" }),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...told.rungs.map(row)))),
  );
};

const step = async () => {
  keepIn(view);
  if (!isShown()) return 1000;
  const wanted = JSON.stringify(props.value || {});
  if (wanted === shown && !isExpected) return 500;
  try {
    const told = await server.plan(props.value || {});
    isExpected = Boolean(told.is_measuring);
    if (told.error) show({ verdict: "", problem: told.error, rungs: [] });
    else show(told);
    shown = wanted;
  } catch {
    verdict.textContent = "Connection lost, trying again…";
    return 2000;
  }
  return 1200;
};

const hurry = repeat(step);
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(hurry, 250);
});
