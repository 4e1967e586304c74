// The pictures of a draft as cards. A cell for each is always there; its card is built while it is near the view, so that
// a thousand scroll like ten. `acts` says what a card can do, and what is known of a caption that is not saved yet.
const ORIGINS = { zip: "from the ZIP", edited: "edited", described: "described", waiting: "being described …", plain: "plain" };

const IS_TOUCHED = matchMedia("(hover: none)").matches;

// What finds words in a text, whatever their letters mean to patterns.
const pattern = (words, matchesCase, isWhole) => {
  const letters = words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  return new RegExp(isWhole ? `(?<![\\p{L}\\p{N}_])${letters}(?![\\p{L}\\p{N}_])` : letters, matchesCase ? "gu" : "giu");
};

// The trigger word as a word of its own, in a caption as it is trained.
const marked = (caption, trigger) => {
  const found = trigger && pattern(trigger, true, true).exec(caption);
  if (!found) return [caption];
  const after = found.index + trigger.length;
  return [caption.slice(0, found.index), make("mark", { text: trigger }), caption.slice(after)];
};

const cardGrid = (acts) => {
  const cells = new Map();
  const chosen = new Set();
  let order = [];
  let trigger = "";
  let current = null;
  let anchor = null;
  let editing = null;
  const grid = make("div", { class: "grid", role: "grid", "aria-multiselectable": "true", "aria-label": "Pictures with their captions" });

  // ---- cards

  // One that waits has words of why, as long as nobody was asked to describe it.
  const origin = (picture) => (picture.origin === "waiting" && picture.caption ? "not described yet" : ORIGINS[picture.origin]);

  const spoken = (picture) => {
    const about = [picture.is_excluded && "excluded", origin(picture), ...picture.notes];
    return `${picture.source}. ${picture.caption || "No caption yet"}. ${about.filter(Boolean).join(", ")}`;
  };

  const frame = (picture) => {
    const crop = picture.crops[picture.crops.length - 1];
    const image = make("img", { src: absolute(picture.url), alt: "", loading: "lazy", decoding: "async", draggable: "false" });
    const cut = make("div", { class: "cut", style: `--aspect: ${picture.width / picture.height}` }, image, crop && cropBox(picture, crop));
    return make("div", { class: "thumbnail" }, cut);
  };

  const state = (picture) => {
    const { kind, words } = acts.state(picture.file);
    if (kind === "failed" || kind === "lost") {
      const again = button("Try again", "small", () => acts.retry(picture.file));
      const discard = button("Discard", "small", () => acts.discard(picture.file));
      return make("div", { class: "failed" }, make("span", { text: words }), make("span", { class: "actions" }, again, discard));
    }
    const about = [origin(picture), ...picture.notes].join(" · ");
    return make("small", { class: kind || picture.origin, title: about, text: words || about });
  };

  const words = (picture) => {
    const typed = acts.typed(picture.file);
    const shown = typed === null ? marked(picture.caption || "…", trigger) : [typed || "…"];
    return make("p", { class: typed === null ? "caption" : "caption typed" }, ...shown);
  };

  const fill = (cell) => {
    const { picture, row } = cell;
    const isChosen = chosen.has(picture.file);
    const select = make("input", { type: "checkbox", tabindex: -1, "aria-label": `Select ${picture.source}` });
    select.checked = isChosen;
    const open = make("button", { type: "button", class: "open", tabindex: -1, title: "As trained", "aria-label": `As trained: ${picture.source}`, text: "⤢" });
    const labels = [picture.repeats > 1 && `× ${picture.repeats}`, picture.is_excluded && "excluded"].filter(Boolean);
    const card = make(
      "div",
      { class: "picture", role: "gridcell" },
      frame(picture),
      make("div", { class: "corners" }, select, open),
      make("div", { class: "labels" }, ...labels.map((text) => make("span", { text }))),
      make("div", { class: "said" }, words(picture), state(picture)),
    );
    row.replaceChildren(card);
    cell.isFilled = true;
  };

  const refresh = (file) => {
    const cell = cells.get(file);
    if (cell && cell.isFilled && file !== editing) fill(cell);
  };

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const cell = cells.get(target.dataset.file);
        if (!cell) continue;
        if (isIntersecting && !cell.isFilled) fill(cell);
        if (isIntersecting || !cell.isFilled || target.contains(document.activeElement)) continue;
        target.replaceChildren();
        cell.isFilled = false;
      }
    },
    { root: grid, rootMargin: "100% 0px" },
  );

  const describeRow = (row, picture) => {
    row.dataset.origin = picture.origin;
    row.setAttribute("aria-label", spoken(picture));
    row.classList.toggle("excluded", picture.is_excluded);
  };

  const cellOf = (picture) => {
    const known = cells.get(picture.file);
    if (known && known.picture === picture) return known;
    const made = JSON.stringify(picture);
    if (known) {
      const isSame = known.made === made;
      Object.assign(known, { made, picture });
      if (isSame) return known;
      describeRow(known.row, picture);
      refresh(picture.file);
      return known;
    }
    const row = make("div", { class: "cell", role: "row", tabindex: -1, "data-file": picture.file, "aria-selected": "false" });
    describeRow(row, picture);
    const cell = { made, picture, row, isFilled: false };
    cells.set(picture.file, cell);
    seen.observe(row);
    return cell;
  };

  // Show these pictures, in this order; cards of others are kept for when they are shown again.
  const show = (pictures, word) => {
    const isOther = word !== trigger;
    trigger = word;
    const rows = pictures.map((picture) => cellOf(picture).row);
    order = pictures.map((picture) => picture.file);
    if (isOther) order.forEach(refresh);
    if (rows.length !== grid.childElementCount || rows.some((row, place) => grid.children[place] !== row)) grid.replaceChildren(...rows);
    for (const file of [...chosen]) if (!order.includes(file)) choose(file, false);
    if (!order.includes(current)) point(order[0] || null);
  };

  const clear = () => {
    seen.disconnect();
    cells.clear();
    chosen.clear();
    current = anchor = editing = null;
    order = [];
    grid.replaceChildren();
  };

  // ---- where one is, and what is selected

  const point = (file) => {
    const before = cells.get(current);
    if (before) before.row.tabIndex = -1;
    current = file;
    if (cells.has(file)) cells.get(file).row.tabIndex = 0;
  };

  const go = (file) => {
    if (!cells.has(file)) return;
    point(file);
    const { row } = cells.get(file);
    row.focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  };

  const choose = (file, isChosen) => {
    chosen[isChosen ? "add" : "delete"](file);
    const cell = cells.get(file);
    if (!cell) return;
    cell.row.setAttribute("aria-selected", String(isChosen));
    if (cell.isFilled) cell.row.querySelector("input").checked = isChosen;
  };

  const chooseTo = (file) => {
    const [from, to] = [order.indexOf(anchor || current), order.indexOf(file)].sort((a, b) => a - b);
    order.forEach((one, place) => choose(one, place >= from && place <= to));
  };

  const toggle = (file) => {
    anchor = file;
    choose(file, !chosen.has(file));
    acts.chosen();
  };

  const chooseAll = (isChosen) => {
    for (const file of isChosen ? order : [...chosen]) choose(file, isChosen);
    acts.chosen();
  };

  // ---- a caption is edited in its card

  const edit = (file) => {
    if (editing) finish(true);
    const cell = cells.get(file);
    if (!cell || !acts.mayEdit()) return;
    go(file);
    if (!cell.isFilled) fill(cell);
    const typed = acts.typed(file);
    const field = make("textarea", { "aria-label": `Caption of ${cell.picture.source}`, maxlength: 4000, rows: 4, dir: "auto" });
    field.defaultValue = cell.picture.text;
    if (typed !== null) field.value = typed;
    field.placeholder = cell.picture.caption || "What is on this picture?";
    field.addEventListener("input", () => acts.type(file, field.value));
    field.addEventListener("blur", () => editing === file && document.activeElement !== field && finish(true));
    const hint = make("small", { class: "keys", text: IS_TOUCHED ? "Tap elsewhere to save" : "Tab saves · Esc cancels" });
    cell.row.querySelector(".said").replaceChildren(field, hint);
    cell.row.classList.add("editing");
    editing = file;
    field.focus({ preventScroll: true });
    field.setSelectionRange(field.value.length, field.value.length);
    cell.row.scrollIntoView({ block: "nearest" });
  };

  // Close the open caption; one that is as it was is not saved.
  const finish = (isSaved) => {
    const file = editing;
    const { row } = cells.get(file);
    const { value, defaultValue } = row.querySelector("textarea");
    editing = null;
    row.classList.remove("editing");
    if (isSaved && value.trim() !== defaultValue.trim()) acts.save(file, value);
    else acts.discard(file);
    refresh(file);
  };

  const finishAndGo = (by) => {
    const next = order[order.indexOf(editing) + by];
    const file = editing;
    finish(true);
    if (next) edit(next);
    else go(file);
  };

  const keysWhileEditing = (event) => {
    if (event.isComposing) return;
    const file = editing;
    if (event.key === "Escape") {
      event.stopPropagation();
      finish(false);
      go(file);
    } else if (event.key === "Tab" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      finishAndGo(event.shiftKey ? -1 : 1);
    }
  };

  // ---- keys and clicks

  const columns = () => getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const stride = (key) => {
    const rows = Math.max(1, Math.floor(grid.clientHeight / (grid.firstChild.offsetHeight + 10)));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -order.length, End: order.length };
    return { ...steps, PageUp: -columns() * rows, PageDown: columns() * rows }[key];
  };

  const move = (event) => {
    const by = stride(event.key);
    const from = order.indexOf(current);
    const isSideways = Math.abs(by) === columns() || Math.abs(by) === 1;
    const to = from + by;
    if (isSideways && (to < 0 || to >= order.length)) return;
    const file = order[Math.min(order.length - 1, Math.max(0, to))];
    if (event.shiftKey) {
      anchor = anchor || current;
      chooseTo(file);
      acts.chosen();
    } else anchor = null;
    go(file);
  };

  grid.addEventListener("keydown", (event) => {
    if (event.target.tagName === "TEXTAREA") return keysWhileEditing(event);
    if (!event.target.matches(".cell") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(Arrow|Home|End|Page)/.test(event.key)) move(event);
    else if (event.key === "Enter" || event.key === "F2") edit(current);
    else if (event.key === " " && event.shiftKey) chooseTo(current), acts.chosen();
    else if (event.key === " ") toggle(current);
    else if (event.key === "Escape" && chosen.size) chooseAll(false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  grid.addEventListener("click", (event) => {
    const row = event.target.closest(".cell");
    if (!row || event.target.closest("textarea, .failed")) return;
    const { file } = row.dataset;
    if (event.target.closest(".open")) return acts.open(file);
    const isBox = event.target.matches("input");
    if (event.shiftKey && (isBox || !editing)) {
      chooseTo(file);
      acts.chosen();
      go(file);
    } else if (isBox || event.ctrlKey || event.metaKey) {
      go(file);
      toggle(file);
    } else if (editing !== file) edit(file);
  });
  grid.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault());
  grid.addEventListener("focusin", (event) => {
    const row = event.target.closest(".cell");
    if (row && row.dataset.file !== current) point(row.dataset.file);
  });

  return {
    grid, show, clear, refresh, edit, go, chooseAll,
    chosen: () => order.filter((file) => chosen.has(file)),
    current: () => (order.includes(current) ? current : null),
    isEditing: () => editing !== null,
  };
};
