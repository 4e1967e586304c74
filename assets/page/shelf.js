// Datasets that are kept: the pictures of the draft under a name, and those that are there to be used again.
let shown = "";
let draft = null;
let isTyped = false;
const name = make("input", { type: "text", maxlength: 100, "aria-label": "Name of the dataset", placeholder: "Keep these pictures as …", autocomplete: "off" });
const press = make("button", { type: "submit", class: "button", text: "Keep" });
const form = make("form", { hidden: true }, name, press);
const message = make("div", { class: "notice", role: "status", hidden: true });
const list = make("ul", { class: "runs" });
const heading = make("h3", { text: "Your datasets", hidden: true });
const view = make("section", { class: "library shelf", "aria-label": "Your datasets" }, form, message, heading, list);

const say = (text, kind = "") => {
  message.hidden = !text;
  message.className = `notice ${kind}`;
  message.textContent = text;
};
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const date = (created) => new Date(created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

const act = async (call, asked) => {
  try {
    const answer = await call(asked);
    if (!answer.error) {
      hurry();
      return answer;
    }
    say(`${answer.error.message} ${answer.error.hint}`, "bad");
  } catch {
    say("The service did not answer. Try again.", "bad");
  }
};

name.addEventListener("input", () => (isTyped = true));
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  press.disabled = true;
  const kept = await act(server.keep, { run: draft, name: name.value });
  press.disabled = false;
  if (!kept) return name.focus();
  name.value = kept.name;
  say(`“${kept.name}” is kept: ${count(kept.pictures, "picture")}, version ${kept.hash.slice(0, 8)}.`);
});

const small = (text, label, onclick) => make("button", { class: "button small", type: "button", text, "aria-label": label, onclick });

// There is no way back, so it asks once more; whoever looks elsewhere has not answered.
const remover = (what, asked, isAll) => {
  const made = small("Delete", `Delete ${what}`, async () => {
    if (!made.dataset.asked) {
      made.dataset.asked = "yes";
      made.textContent = isAll ? "Delete all versions?" : "Really delete?";
      made.setAttribute("aria-label", `${made.textContent} ${what}`);
      return made.classList.add("danger");
    }
    made.disabled = true;
    if (await act(server.remove, asked)) say(`Deleted ${what}. Finetunes that were made with it stay as they are.`);
    else made.disabled = false;
  });
  made.addEventListener("blur", () => {
    delete made.dataset.asked;
    made.textContent = "Delete";
    made.setAttribute("aria-label", `Delete ${what}`);
    made.classList.remove("danger");
  });
  return made;
};

const user = (what, asked) =>
  small("Use", `Use ${what}`, () => {
    say("");
    trigger("use", { dataset: asked });
  });

const version = (dataset, one) => {
  const what = `version ${one.hash.slice(0, 8)} of “${dataset.name}”`;
  const asked = { name: dataset.name, owner: dataset.owner, hash: one.hash };
  const words = [one.hash.slice(0, 8), count(one.pictures, "picture"), date(one.created)].join(" · ");
  return make("li", {}, make("span", { class: "about", text: words }), user(what, asked), remover(what, asked, false));
};

const card = (dataset) => {
  const what = `“${dataset.name}”`;
  const asked = { name: dataset.name, owner: dataset.owner };
  const many = dataset.versions.length > 1;
  const facts = [count(dataset.pictures, "picture"), date(dataset.created), dataset.whose && `owned by ${dataset.whose}`].filter(Boolean).join(" · ");
  const versions = many && make("details", {}, make("summary", { text: count(dataset.versions.length, "version") }), make("ul", {}, ...dataset.versions.map((one) => version(dataset, one))));
  return make(
    "li",
    { title: `From ${dataset.source}` },
    make("img", { src: absolute(dataset.picture), alt: "", loading: "lazy" }),
    make("div", { class: "about" }, make("strong", { text: dataset.name }), make("small", { text: facts })),
    user(what, asked),
    remover(what, asked, many),
    versions,
  );
};

const show = (told) => {
  if (!isTyped) name.value = told.origin || (props.value && props.value.name) || "";
  const made = JSON.stringify(told.datasets);
  if (made === shown) return;
  shown = made;
  heading.hidden = !told.datasets.length;
  list.replaceChildren(...told.datasets.map(card));
};

const step = async () => {
  keepIn(view);
  const now = (props.value && props.value.run) || null;
  if (now !== draft) {
    draft = now;
    isTyped = false;
    say("");
  }
  form.hidden = !draft;
  if (!isShown()) return 1000;
  try {
    const told = await server.datasets({ run: draft });
    if (told.error) say(`${told.error.message} ${told.error.hint}`, "bad");
    else show(told);
  } catch {
    return 4000;
  }
  view.hidden = form.hidden && heading.hidden && message.hidden;
  return 20000;
};

const hurry = repeat(step);
let pause = 0;
watch("value", () => {
  clearTimeout(pause);
  pause = setTimeout(hurry, 250);
});
