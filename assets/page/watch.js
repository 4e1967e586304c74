// The page for those who only watch a run. Its key stands behind the # of the address, which no server is sent.
const element = document.querySelector("main");
const FAST = 1000;
const SLOW = 5000;
const FAILED = "This run failed. Its owner sees why.";
const run = location.pathname.split("/").pop();

const title = make("h1", { class: "title" });
const badge = make("span", { class: "badge" });
const notice = make("div", { class: "notice warn", role: "status", hidden: true });
const stage = stageLine();
const samples = sampleGallery();
const curve = lossCurve();
const news = make(
  "div",
  { class: "view", hidden: true },
  make("div", { class: "names" }, title, badge),
  make("div", { class: "now" }, stage.line, stage.bar),
  samples.card,
  curve.card,
);
const brand = make("p", { class: "brand", text: "Finetune · you are watching one run" });
element.replaceChildren(make("div", { class: "live" }, brand, notice, news, samples.dialog));

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.body.classList.toggle("dark", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

let cursor = 0;
const say = (text) => {
  notice.hidden = !text;
  notice.textContent = text;
};

const forget = (text) => {
  cursor = 0;
  news.hidden = true;
  document.title = "Finetune";
  for (const one of [stage, samples, curve]) one.clear();
  say(text);
};

const show = (told) => {
  news.hidden = false;
  cursor = told.cursor;
  say(told.state === "failed" ? FAILED : "");
  title.textContent = told.name;
  document.title = `${told.name} · Finetune`;
  badge.textContent = told.badge;
  badge.className = `badge ${told.state}`;
  stage.show(told);
  curve.add(told.points, stage.steps());
  told.samples.forEach(samples.add);
};

const step = async () => {
  const headers = { "x-watch-key": location.hash.slice(1) };
  try {
    const answer = await fetch(absolute(`v1/watch/${run}/news?since=${cursor}`), { headers, cache: "no-store", credentials: "omit" });
    const told = await answer.json();
    if (answer.ok) show(told);
    else if (answer.status === 404) forget(told.detail);
    else say(told.detail);
    return answer.ok && told.state === "running" ? FAST : SLOW;
  } catch {
    say("Connection lost, trying again…");
    return SLOW;
  }
};

const hurry = repeat(step);
addEventListener("hashchange", () => {
  forget("");
  hurry();
});
