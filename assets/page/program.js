// The form as a program in three languages, and the keys that programs need. Asked for only while it is unfolded.
let told = null;
let shown = "";
let chosen = "curl";
let made = "";
const code = make("code");
const text = make("pre", { tabindex: 0, role: "tabpanel", "aria-label": "Program" }, code);
const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "Language" });
const words = make("p", { class: "quiet" });
const once = make("div", { class: "notice", role: "status", hidden: true });
const list = make("ul", { class: "keys" });
const trouble = make("div", { class: "notice bad", role: "alert", hidden: true });

const copier = (what, from) => make("button", { type: "button", class: "button small", text: "Copy", onclick: (event) => copy(what(), from, event.target) });

const program = () => {
  const given = (told && told.programs[chosen]) || "";
  return made && told.placeholder ? given.replaceAll(told.placeholder, made) : given;
};

const choose = (language, isFocused) => {
  chosen = language;
  code.textContent = program();
  tabs.replaceChildren(
    ...Object.keys(told.programs).map((name) =>
      make("button", {
        type: "button", role: "tab", class: "button small", text: name, "aria-selected": String(name === chosen),
        tabindex: name === chosen ? 0 : -1, onclick: () => choose(name, true), onkeydown: move,
      }),
    ),
  );
  if (isFocused) tabs.querySelector("[aria-selected=true]").focus();
};

const move = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const names = Object.keys(told.programs);
  choose(names[(names.indexOf(chosen) + step + names.length) % names.length], true);
};

const say = (problem) => {
  trouble.hidden = !problem;
  if (problem) trouble.replaceChildren(make("strong", { text: problem.message }), make("span", { text: problem.hint }));
};

const ask = async (name, values) => {
  try {
    const answer = await server[name](values);
    say(answer.error);
    return answer.error ? null : answer;
  } catch {
    say({ message: "Connection lost.", hint: "Try again." });
    return null;
  }
};

const showKeys = (about) => {
  words.textContent = about.words;
  more.hidden = !about.may_make;
  list.replaceChildren(
    ...about.keys.map((key) =>
      make(
        "li",
        {},
        make("code", { text: `${key.id}…` }),
        make("small", { text: `made ${new Date(key.created * 1000).toLocaleDateString()}` }),
        make("button", { type: "button", class: "button small", text: "Revoke", "aria-label": `Revoke ${key.id}`, onclick: (event) => revoke(key.id, event.target) }),
      ),
    ),
  );
};

const makeKey = async () => {
  more.disabled = true;
  const answer = await ask("make_key", {});
  more.disabled = false;
  if (!answer) return;
  made = answer.key;
  const key = make("code", { text: made });
  once.replaceChildren(make("strong", { text: "Your new key" }), key, copier(() => made, key), make("span", { text: "It is shown this once, and stands in the programs above." }));
  once.hidden = false;
  showKeys(answer);
  choose(chosen);
};

const revoke = async (id, button) => {
  if (button.textContent === "Revoke") return void (button.textContent = "Really revoke?");
  button.disabled = true;
  const answer = await ask("revoke_key", { id });
  button.disabled = false;
  if (!answer) return;
  if (made.startsWith(id)) {
    made = "";
    once.hidden = true;
    choose(chosen);
  }
  showKeys(answer);
};

const more = make("button", { type: "button", class: "button small", text: "Make a key", hidden: true, onclick: makeKey });
const docs = make("a", { href: absolute("docs"), target: "_blank", rel: "noreferrer", text: "All routes" });
const view = make(
  "details",
  { class: "program", ontoggle: () => hurry() },
  make("summary", { text: "Use it from a program" }),
  make("div", { class: "line" }, tabs, copier(program, code)),
  text,
  make("p", { class: "quiet" }, docs, " are described, with every field and every answer."),
  words,
  once,
  list,
  more,
  trouble,
);

const step = async () => {
  keepIn(view);
  if (!isShown() || !view.open) return 1000;
  const values = { ...(props.value || {}), root: absolute("") };
  const wanted = JSON.stringify(values);
  if (wanted === shown) return 500;
  const answer = await ask("programs", values);
  if (!answer) return 2000;
  const isFirst = !told;
  told = answer;
  shown = wanted;
  if (isFirst) choose(chosen);
  code.textContent = program();
  showKeys(answer);
  return 500;
};

const hurry = repeat(step);
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(hurry, 250);
});
