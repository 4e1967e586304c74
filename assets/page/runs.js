// All runs, and those that were deleted and can still be brought back.
let shown = "";
const message = make("div", { class: "notice", role: "status", hidden: true });
const list = make("ul", { class: "runs" });
const deleted = make("details", { class: "card deleted", hidden: true });
const view = make("div", { class: "library" }, message, list, deleted);

const say = (text, ...more) => {
  message.hidden = !text;
  message.replaceChildren(make("span", { text }), ...more);
};

const act = async (call, id) => {
  try {
    const answer = await call({ run: id });
    if (answer && answer.error) return say(`${answer.error.message} ${answer.error.hint}`);
    hurry();
    return answer;
  } catch {
    say("The service did not answer. Try again.");
  }
};

const small = (text, label, onclick) => make("button", { class: "button small", type: "button", text, "aria-label": label, onclick });

const remove = async (run) => {
  if (!(await act(server.remove, run.id))) return;
  say(`Deleted “${run.name}”.`, small("Undo", `Undo deleting ${run.name}`, () => bringBack(run)));
};

const bringBack = async (run) => {
  if (await act(server.restore, run.id)) say(`“${run.name}” is back.`);
};

const card = (run) => {
  const open = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    trigger("open", { run: run.id });
  };
  const date = new Date(run.created).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const facts = [run.base, date, run.owner && `owned by ${run.owner}`].filter(Boolean).join(" · ");
  const place = run.place ? ` · ${run.place > 1 ? `place ${run.place}` : "next"}` : "";
  return make(
    "li",
    {},
    make(
      "a",
      { class: "run", href: absolute(`?run=${run.id}`), onclick: open },
      run.picture ? make("img", { src: absolute(run.picture), alt: "" }) : make("span", { class: "none" }),
      make("span", { class: "about" }, make("strong", { text: run.name }), make("small", { text: facts })),
      make("span", { class: `badge ${run.state}`, text: run.badge + place }),
    ),
    small("Delete", `Delete ${run.name}`, (event) => confirmed(event.target, run)),
  );
};

// A finished run goes at once, because there is a way back; one at work is stopped by it, so that asks once more.
const confirmed = (button, run) => {
  if (!["running", "stopping"].includes(run.state) || button.dataset.asked) return remove(run);
  button.dataset.asked = "yes";
  button.textContent = "Stop and delete?";
  button.classList.add("danger");
};

const gone = (run) =>
  make("li", {}, make("span", { text: [run.name, run.badge, run.owner && `owned by ${run.owner}`].filter(Boolean).join(" · ") }), small("Restore", `Restore ${run.name}`, () => bringBack(run)));

const show = (told) => {
  const made = JSON.stringify(told);
  if (made === shown) return;
  shown = made;
  list.replaceChildren(...told.runs.map(card));
  if (!told.runs.length) list.append(make("li", { class: "empty" }, make("p", { text: "No runs yet. Your finetunes will be listed here." })));
  deleted.hidden = !told.deleted.length;
  const open = deleted.open;
  deleted.replaceChildren(
    make("summary", { text: `Deleted (${told.deleted.length}), kept for ${told.days} days` }),
    make("ul", {}, ...told.deleted.map(gone)),
  );
  deleted.open = open;
};

const step = async () => {
  keepIn(view);
  if (!isShown()) return 1000;
  try {
    const told = await server.runs({});
    if (told.error) say(`${told.error.message} ${told.error.hint}`);
    else show(told);
    if (message.dataset.lost) say("");
    delete message.dataset.lost;
  } catch {
    message.dataset.lost = "yes";
    say("Connection lost, trying again…");
  }
  return 4000;
};

const hurry = repeat(step);
