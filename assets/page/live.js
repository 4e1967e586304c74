// The live view of one run. It asks for what is new since its cursor, so it holds no connection open and goes on after
// the page was hidden, the network was gone or the service was restarted.
const FAST = 1000;
const WAITING = 2000;
const SLOW = 15000;
const UNHEARD = { message: "The service did not answer.", hint: "Try again." };

let run = null;
let cursor = 0;
let state = "";
let shownResult = "";
let wasShown = false;
let isMoving = false;

const part = (tag, name, about = {}) => make(tag, { class: name, ...about });
const empty = part("div", "empty");
empty.append(
  make("h3", { text: "No run is open" }),
  make("p", { text: "Start one under “New finetune”, or open one under “Runs”." }),
);
const connection = part("div", "notice warn", { role: "status", hidden: true });
const title = part("h2", "title");
const badge = part("span", "badge");
const facts = part("p", "facts");
const stage = stageLine();
const actions = part("div", "actions");
const hindrance = part("div", "notice warn", { role: "status", hidden: true });
const failure = part("div", "notice bad", { role: "alert", hidden: true });
const result = part("section", "card result", { hidden: true, "aria-label": "Result" });
const curve = lossCurve();
const samples = sampleGallery();
const warnings = part("section", "warnings", { "aria-label": "Warnings", hidden: true });
const log = part("ol", "log", { tabindex: 0, "aria-label": "Log" });
const sharing = part("div", "sharing");
const problem = part("div", "notice warn", { role: "alert", hidden: true });
const webhook = webhookCard((pressed, delivery) => act(pressed, "send_again", { delivery }));
const trying = tryingCard((what, values) => ask(what, values));

const live = make(
  "div",
  { class: "live" },
  make("div", { class: "head" }, make("div", { class: "names" }, title, badge), facts),
  connection,
  problem,
  failure,
  hindrance,
  make("div", { class: "now" }, stage.line, stage.bar, actions),
  sharing,
  result,
  trying.card,
  samples.card,
  curve.card,
  webhook.card,
  warnings,
  make("details", { class: "card", open: true }, make("summary", { text: "Log" }), log),
  samples.dialog,
  trying.dialog,
);
const view = make("div", { class: "view" }, empty, live);

const reset = (id) => {
  run = id;
  cursor = 0;
  state = "";
  shownResult = "";
  isMoving = false;
  for (const one of [title, badge, facts, failure, result, log, warnings, actions, sharing]) one.replaceChildren();
  for (const one of [failure, hindrance, result, warnings, connection, problem]) one.hidden = true;
  for (const one of [stage, samples, curve, webhook, trying]) one.clear();
};

// ---- what a person does

// Let the service do something with this run; what goes wrong is in the answer.
const ask = async (what, values = {}) => {
  try {
    return (await server[what]({ run, ...values })) || {};
  } catch {
    return { error: UNHEARD };
  } finally {
    hurry();
  }
};

const act = async (pressed, what, values = {}) => {
  pressed.disabled = true;
  const told = await ask(what, values);
  pressed.disabled = false;
  problem.hidden = !told.error;
  problem.textContent = told.error ? `${told.error.message} ${told.error.hint}` : "";
  return told;
};

const showActions = () => {
  const can = ["queued", "running"].includes(state) ? "stop" : ["stopped", "failed"].includes(state) ? "resume" : "";
  if (actions.dataset.can === `${run} ${state}`) return;
  actions.dataset.can = `${run} ${state}`;
  actions.replaceChildren();
  if (can === "resume") actions.append(button("Continue this run", "primary", (e) => act(e.target, "resume")));
  if (can !== "stop") return;
  const ask = button("Stop", "", () => {
    const yes = button("Yes, stop it", "danger", (e) => act(e.target, "stop"));
    const no = button("Keep going", "", () => actions.replaceChildren(ask));
    actions.replaceChildren(make("span", { text: "Stop this run? It can be continued later." }), yes, no);
    no.focus();
  });
  actions.append(ask);
};

// ---- log and warnings

const addLog = (line) => {
  const wasAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const time = new Date(line.time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  log.append(
    make("li", { class: line.is_warning ? "warn" : null }, make("time", { text: time }), make("span", { text: line.text })),
  );
  while (log.childElementCount > 400) log.firstChild.remove();
  if (wasAtEnd) log.scrollTop = log.scrollHeight;
  if (line.is_warning && state !== "failed") {
    warnings.hidden = false;
    warnings.append(make("div", { class: "notice warn", text: line.text }));
    while (warnings.childElementCount > 5) warnings.firstChild.remove();
  }
};

const showFailure = (told) => {
  failure.hidden = state !== "failed";
  if (!told.failure) return;
  failure.replaceChildren(
    make("strong", { text: told.failure.message || "The run failed." }),
    make("span", { text: told.failure.hint || "" }),
  );
};

// ---- a link for others

const HERE_ONLY = /^(localhost|127\.|\[::1\])/;

const showSharing = (link) => {
  const change = async (event, what) => {
    const told = await act(event.target, what);
    if (!told.error) showSharing(told.watch);
  };
  if (!link) return sharing.replaceChildren(button("Share a link to watch", "small", (event) => change(event, "share")));
  const address = absolute(link);
  const shown = make("code", { text: address, tabindex: 0 });
  const again = button("Copy", "small", () => copy(address, shown, again));
  const about =
    "Whoever has this link sees this run’s name, progress, loss and samples, without signing in, and nothing else." +
    (HERE_ONLY.test(new URL(address).hostname) ? " It leads to this computer: others need the address at which they reach it." : "");
  sharing.replaceChildren(
    make("div", { class: "actions" }, shown, again, button("Withdraw", "small", (event) => change(event, "withdraw"))),
    make("p", { class: "quiet", text: about }),
  );
};

// ---- result

// What the full finetune drew, and what the LoRA that was extracted from it draws with the same seed.
const comparison = (pairs) => {
  const rows = pairs.map((pair) =>
    make(
      "div",
      { class: "row" },
      make("p", { text: pair.prompt }),
      make("div", { class: "strip" }, ...[["full finetune", pair.full], ["LoRA", pair.lora]].map(([name, url]) =>
        make("figure", { class: "sample" }, make("img", { src: absolute(url), alt: `${pair.prompt}, ${name}` }), make("figcaption", { text: name })),
      )),
    ),
  );
  return make("details", { class: "samples" }, make("summary", { text: "Full finetune and extracted LoRA side by side" }), ...rows);
};

const pushing = () => {
  const field = (label, about) => make("label", {}, make("span", { text: label }), make("input", about));
  const name = field("Repository", { name: "repo", required: true, placeholder: "your-name/my-lora", autocomplete: "off" });
  const token = field("Access token with write right", { name: "token", type: "password", required: true, placeholder: "hf_…", autocomplete: "off" });
  const open = make("label", { class: "check" }, make("input", { name: "public", type: "checkbox" }), make("span", { text: "Everyone may see it" }));
  const answer = make("p", { role: "status" });
  const form = make("form", {}, name, token, open, make("button", { class: "button", text: "Push" }), answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [given, press] = [new FormData(form), form.querySelector("button")];
    press.disabled = true;
    answer.textContent = "Pushing …";
    try {
      const told = await server.push({ run, repo: given.get("repo"), token: given.get("token"), is_public: given.has("public") });
      if (told.error) answer.textContent = `${told.error.message} ${told.error.hint}`;
      else answer.replaceChildren("It is at ", make("a", { href: told.url, target: "_blank", rel: "noreferrer", text: told.url }));
      if (!told.error) form.querySelector("[name=token]").value = "";
    } catch {
      answer.textContent = "The service did not answer. Try again.";
    }
    press.disabled = false;
  });
  const about = "Uploads the LoRA files, the model card and the latest samples; private unless you say otherwise. The token is used once and kept nowhere.";
  return make("details", { class: "push" }, make("summary", { text: "Push to the Hugging Face Hub" }), make("p", { class: "quiet", text: about }), form);
};

const showResult = (told) => {
  result.hidden = !told.result;
  const made = JSON.stringify(told.result);
  if (!told.result || made === shownResult) return;
  shownResult = made;
  const files = make("div", { class: "files" });
  for (const [place, file] of told.result.files.entries()) {
    const words = make("span", {}, make("strong", { text: `Download ${file.title}` }), make("small", { text: `${file.name} · ${bytes(file.bytes)}` }));
    files.append(make("a", { class: `button ${place ? "" : "primary"}`, href: absolute(file.url), download: file.name }, words));
  }
  const figures = make("dl", {});
  for (const [name, value] of told.result.figures) {
    figures.append(make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
  }
  const heading = state === "ready" ? "Your LoRA is ready" : "The LoRA so far";
  const checks = make("ul", { class: "checks" }, ...told.result.checks.map((text) => make("li", { text })));
  result.replaceChildren(make("h3", { text: heading }), files, checks, figures);
  if (told.result.comparison.length) result.append(comparison(told.result.comparison));
  result.append(pushing());
  if (!told.result.usage) return;
  const lines = make("pre", { tabindex: 0 }, make("code", { text: told.result.usage }));
  const again = button("Copy", "small", () => copy(told.result.usage, lines, again));
  result.append(make("header", {}, make("h4", { text: "Use it in diffusers" }), again), lines);
};

// ---- asking

const showConnection = (text, kind = "") => {
  connection.hidden = !text;
  if (connection.dataset.text === text) return;
  connection.dataset.text = text;
  connection.replaceChildren(make("span", { text }));
  if (kind === "reload") connection.append(button("Load the page again", "small", () => location.reload()));
};

const show = (told) => {
  state = told.state;
  cursor = told.cursor;
  if (told.name !== undefined) {
    title.textContent = told.name;
    facts.replaceChildren(...told.facts.map((text) => make("span", { text })));
    showSharing(told.watch);
  }
  badge.textContent = told.badge;
  badge.className = `badge ${state}`;
  showActions();
  stage.show(told);
  live.querySelector(".now").classList.toggle("quiet", stage.isEmpty() && !actions.childElementCount);
  curve.add(told.points, stage.steps());
  told.samples.forEach(samples.add);
  told.log.forEach(addLog);
  hindrance.hidden = !told.hindrance;
  hindrance.textContent = told.hindrance || "";
  showFailure(told);
  showResult(told);
  sharing.hidden = state === "draft";
  isMoving = [webhook.show(told.webhook), trying.show(told.drawing)].some(Boolean);
};

const step = async () => {
  keepIn(view);
  const wanted = typeof props.value === "string" ? props.value : "";
  if (wanted !== run) reset(wanted);
  empty.hidden = Boolean(run);
  live.hidden = !run;
  const isVisible = isShown();
  if (isVisible) setAddress("run", run);
  else if (wasShown) setAddress("run", "");
  wasShown = isVisible;
  if (!run || !isVisible) return FAST;
  const asked = run;
  try {
    const told = await server.live({ run, since: cursor });
    if (asked !== run || asked !== props.value) return 0;
    showConnection(told.error ? `${told.error.message} ${told.error.hint}` : "");
    if (!told.error) show(told);
  } catch {
    if ((await whyItFailed()) === "lost") showConnection("Connection lost, trying again… Training is not affected.");
    else showConnection("The service was restarted and no longer knows this page.", "reload");
    return WAITING;
  }
  if (isMoving) return FAST;
  if (OVER.includes(state)) return SLOW;
  return state === "queued" ? WAITING : FAST;
};

const hurry = repeat(step);
watch("value", hurry);
