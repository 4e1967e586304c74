// The live view of one run. It asks for what is new since its cursor, so it holds no connection open and goes on after
// the page was hidden, the network was gone or the service was restarted.
const FAST = 1000;
const WAITING = 2000;
const SLOW = 15000;
const OVER = ["stopped", "failed", "ready"];

let run = null;
let cursor = 0;
let state = "";
let points = [];
let progress = null;
let samples = new Map();
let shownResult = "";
let wasShown = false;
let hovered = null;
let lastHeard = 0;

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
const stage = part("span", "stage");
const left = part("span", "left");
const bar = part("progress", "bar", { max: 1, "aria-label": "Progress" });
const actions = part("div", "actions");
const failure = part("div", "notice bad", { role: "alert", hidden: true });
const result = part("section", "card result", { hidden: true, "aria-label": "Result" });
const canvas = part("canvas", "curve", { role: "img", tabindex: 0, "aria-label": "Loss curve" });
const readout = part("div", "readout");
const curve = part("section", "card", { "aria-label": "Loss" });
const gallery = part("section", "card samples", { "aria-label": "Samples", hidden: true });
const warnings = part("section", "warnings", { "aria-label": "Warnings", hidden: true });
const log = part("ol", "log", { tabindex: 0, "aria-label": "Log" });
const dialog = part("dialog", "enlarged");

curve.append(make("header", {}, make("h3", { text: "Loss" }), readout), canvas);
const live = make(
  "div",
  { class: "live" },
  make("div", { class: "head" }, make("div", { class: "names" }, title, badge), facts),
  connection,
  failure,
  make("div", { class: "now" }, make("div", { class: "line" }, stage, left), bar, actions),
  result,
  gallery,
  curve,
  warnings,
  make("details", { class: "card", open: true }, make("summary", { text: "Log" }), log),
  dialog,
);
const view = make("div", { class: "view" }, empty, live);

const reset = (id) => {
  run = id;
  cursor = 0;
  state = "";
  points = [];
  progress = null;
  samples = new Map();
  shownResult = "";
  for (const one of [title, badge, facts, stage, left, readout, failure, result, log]) one.replaceChildren();
  gallery.replaceChildren(make("h3", { text: "Samples" }));
  warnings.replaceChildren();
  for (const one of [failure, result, gallery, warnings, connection]) one.hidden = true;
  actions.replaceChildren();
};

// ---- time and stage

const duration = (seconds) => {
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds) % 60} s` : `${Math.round(seconds)} s`;
};

const showStage = (told) => {
  if (told.progress) progress = told.progress;
  const isOver = OVER.includes(state);
  stage.textContent = (state === "running" && progress ? progress.title : told.notice) || (isOver ? "" : "Starting");
  const hasCount = progress && progress.of;
  const count = progress && progress.unit === "bytes" ? bytes : String;
  if (state === "running" && hasCount) stage.textContent += ` · ${count(progress.done ?? 0)} of ${count(progress.of)}`;
  left.textContent = "";
  if (state === "running" && progress && progress.seconds_left != null) {
    const gone = (Date.now() - lastHeard) / 1000;
    left.textContent = `about ${duration(Math.max(0, progress.seconds_left - gone))} left`;
  }
  bar.hidden = isOver || state === "draft";
  if (hasCount && state !== "queued") bar.value = (progress.done ?? 0) / progress.of;
  else bar.removeAttribute("value");
  live.querySelector(".now").classList.toggle("quiet", isOver && !stage.textContent && !actions.childElementCount);
};

// ---- stop and continue

const act = async (button, call) => {
  button.disabled = true;
  try {
    const answer = await call({ run });
    if (answer && answer.error) showConnection(`${answer.error.message} ${answer.error.hint}`);
  } catch {
    showConnection("The service did not answer. Try again.");
  }
  button.disabled = false;
  hurry();
};

const button = (text, kind, onclick) => make("button", { class: `button ${kind}`, type: "button", text, onclick });

const showActions = () => {
  const can = ["queued", "running"].includes(state) ? "stop" : ["stopped", "failed"].includes(state) ? "resume" : "";
  if (actions.dataset.can === `${run} ${state}`) return;
  actions.dataset.can = `${run} ${state}`;
  actions.replaceChildren();
  if (can === "resume") actions.append(button("Continue this run", "primary", (e) => act(e.target, server.resume)));
  if (can !== "stop") return;
  const ask = button("Stop", "", () => {
    const yes = button("Yes, stop it", "danger", (e) => act(e.target, server.stop));
    const no = button("Keep going", "", () => actions.replaceChildren(ask));
    actions.replaceChildren(make("span", { text: "Stop this run? It can be continued later." }), yes, no);
    no.focus();
  });
  actions.append(ask);
};

// ---- samples: a row for each prompt, a column for each step

let shownSample = null;
const enlarge = (sample) => {
  shownSample = sample;
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
  const row = [...samples.values()].filter((one) => one.index === shownSample.index).sort((a, b) => a.step - b.step);
  const next = row[row.findIndex((one) => one.step === shownSample.step) + by];
  if (next) enlarge(next);
};
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") move(-1);
  if (event.key === "ArrowRight") move(1);
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

const addSample = (sample) => {
  const key = `${sample.step}/${sample.index}`;
  const isNew = !samples.has(key);
  samples.set(key, sample);
  if (!isNew) {
    const known = gallery.querySelector(`[data-key="${key}"] img`);
    if (known) known.src = absolute(sample.url);
    return;
  }
  gallery.hidden = false;
  let row = gallery.querySelector(`[data-index="${sample.index}"]`);
  if (!row) {
    row = make("div", { class: "row", "data-index": sample.index }, make("p", { text: sample.prompt }));
    row.append(make("div", { class: "strip" }));
    const after = [...gallery.querySelectorAll(".row")].find((one) => Number(one.dataset.index) > sample.index);
    gallery.insertBefore(row, after || null);
  }
  const strip = row.querySelector(".strip");
  const wasAtEnd = strip.scrollLeft + strip.clientWidth >= strip.scrollWidth - 8;
  const picture = make("img", { src: absolute(sample.url), alt: `${sample.prompt}, step ${sample.step}` });
  const figure = make(
    "button",
    { class: "sample", type: "button", "data-key": key, "data-step": sample.step, onclick: () => enlarge(samples.get(key)) },
    picture,
    make("span", { text: sample.step === 0 ? "before" : `step ${sample.step}` }),
  );
  const later = [...strip.children].find((one) => Number(one.dataset.step) > sample.step);
  strip.insertBefore(figure, later || null);
  if (wasAtEnd) strip.scrollLeft = strip.scrollWidth;
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

// ---- result

const copy = async (text, told) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard: mark the text, so that the keys copy it.
    getSelection().selectAllChildren(result.querySelector("pre"));
    if (!document.execCommand("copy")) return;
  }
  told.textContent = "Copied";
  setTimeout(() => (told.textContent = "Copy"), 1500);
};

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
  const again = button("Copy", "small", () => copy(told.result.usage, again));
  result.append(
    make("header", {}, make("h4", { text: "Use it in diffusers" }), again),
    make("pre", { tabindex: 0 }, make("code", { text: told.result.usage })),
  );
};

// ---- the loss curve

const addPoints = (more) => {
  for (const point of more) {
    while (points.length && points[points.length - 1][0] >= point[0]) points.pop();
    points.push(point);
  }
  if (points.length > 2400) points = points.filter((_, place) => place % 2 === 0 || place === points.length - 1);
};

const smoothed = () => {
  const keep = Math.min(0.97, Math.max(0.6, 1 - 12 / points.length));
  let sum = 0;
  let weight = 0;
  return points.map(([step, loss]) => {
    sum = keep * sum + (1 - keep) * loss;
    weight = keep * weight + (1 - keep);
    return [step, sum / weight];
  });
};

const niceSteps = (low, high, count) => {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(6)));
  return found;
};

const draw = () => {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
  pen.fillStyle = colour("--body-text-color-subdued");
  if (!points.length) {
    pen.textAlign = "center";
    pen.fillText("The curve begins with the first step.", width / 2, height / 2);
    return;
  }
  const smooth = smoothed();
  const sorted = points.map((point) => point[1]).sort((a, b) => a - b);
  const low = sorted[0];
  const high = sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * 0.99))];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  const [bottom, top] = [Math.max(0, low - room), high + room];
  const last = Math.max((progress && progress.title === "Training" && progress.of) || 0, points[points.length - 1][0], 2);
  const box = { left: 52, right: width - 12, top: 10, bottom: height - 38 };
  const x = (step) => box.left + (step / last) * (box.right - box.left);
  const y = (loss) => box.bottom - ((loss - bottom) / (top - bottom)) * (box.bottom - box.top);

  pen.lineWidth = 1;
  pen.strokeStyle = colour("--border-color-primary");
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  for (const loss of niceSteps(bottom, top, 6)) {
    pen.beginPath();
    pen.moveTo(box.left, Math.round(y(loss)) + 0.5);
    pen.lineTo(box.right, Math.round(y(loss)) + 0.5);
    pen.stroke();
    pen.fillText(String(loss), box.left - 8, y(loss));
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  for (const step of niceSteps(0, last, width < 500 ? 4 : 8)) pen.fillText(String(step), x(step), box.bottom + 6);
  pen.fillText("step", (box.left + box.right) / 2, box.bottom + 22);

  const line = (path, wide, faint) => {
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    pen.clip();
    pen.beginPath();
    path.forEach(([step, loss], place) => (place ? pen.lineTo(x(step), y(loss)) : pen.moveTo(x(step), y(loss))));
    pen.lineWidth = wide;
    pen.globalAlpha = faint;
    pen.lineJoin = "round";
    pen.strokeStyle = colour("--curve-color");
    pen.stroke();
    if (path.length === 1) pen.fillRect(x(path[0][0]) - 2, y(path[0][1]) - 2, 4, 4);
    pen.restore();
  };
  line(points, 1, 0.35);
  line(smooth, 2.5, 1);

  let at = points.length - 1;
  if (hovered !== null) {
    const step = ((hovered - box.left) / (box.right - box.left)) * last;
    at = points.reduce((best, point, place) => (Math.abs(point[0] - step) < Math.abs(points[best][0] - step) ? place : best), 0);
    pen.strokeStyle = colour("--body-text-color-subdued");
    pen.beginPath();
    pen.moveTo(x(points[at][0]), box.top);
    pen.lineTo(x(points[at][0]), box.bottom);
    pen.stroke();
    pen.fillStyle = colour("--curve-color");
    pen.beginPath();
    pen.arc(x(smooth[at][0]), y(smooth[at][1]), 4, 0, 7);
    pen.fill();
  }
  readout.textContent = `step ${points[at][0]} · loss ${points[at][1].toFixed(4)} · smoothed ${smooth[at][1].toFixed(4)}`;
  canvas.setAttribute("aria-label", `Loss curve, ${readout.textContent}`);
};

canvas.addEventListener("pointermove", (event) => {
  hovered = event.clientX - canvas.getBoundingClientRect().left;
  draw();
});
canvas.addEventListener("pointerleave", () => {
  hovered = null;
  draw();
});
new ResizeObserver(draw).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });

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
  if (told.progress) lastHeard = Date.now();
  if (told.name !== undefined) {
    title.textContent = told.name;
    facts.replaceChildren(...told.facts.map((text) => make("span", { text })));
  }
  badge.textContent = told.badge;
  badge.className = `badge ${state}`;
  showActions();
  addPoints(told.points);
  told.samples.forEach(addSample);
  told.log.forEach(addLog);
  showStage(told);
  showFailure(told);
  showResult(told);
  draw();
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
  if (OVER.includes(state)) return SLOW;
  return state === "queued" ? WAITING : FAST;
};

const hurry = repeat(step);
watch("value", hurry);
