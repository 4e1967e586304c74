// The bar over the pictures: which of them are shown, and what can be done with their captions. Everything that a key
// does is a button here too.
const FILTERS = {
  all: ["All", () => true],
  empty: ["Without caption", (picture) => !picture.text],
  edited: ["Edited", (picture) => picture.origin === "edited"],
  excluded: ["Excluded", (picture) => picture.is_excluded],
  noted: ["With notes", (picture) => picture.notes.length > 0],
};
const KEYS = [
  ["Arrows, Home, End", "go from picture to picture"],
  ["Enter", "edit the caption"],
  ["Tab or Ctrl Enter", "save, and edit the next one"],
  ["Esc", "cancel; select nothing"],
  ["Space", "select"],
  ["Shift with arrows", "select all from here to there"],
  ["Ctrl A", "select all that are shown"],
  ["Delete", "exclude from training, or include again"],
  ["R", "describe again"],
  ["T", "show as trained"],
  ["Ctrl Z, Ctrl Shift Z", "undo, redo"],
  ["/", "search"],
  ["?", "show these keys"],
];
const IS_APPLE = /Mac|iPhone|iPad/.test(navigator.platform);
const inKeys = (words) => (IS_APPLE ? words.replaceAll("Ctrl", "⌘") : words);

const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

const toolBar = (acts) => {
  const tool = (text, title, onclick, about = {}) => make("button", { class: "button small", type: "button", text, title: inKeys(title), onclick, ...about });
  const field = (label, about = {}) => {
    const input = make("input", { type: "text", autocomplete: "off", spellcheck: "false", maxlength: 500, ...about });
    return [make("label", {}, make("span", { text: label }), input), input];
  };

  // ---- which pictures

  const search = make("input", { type: "search", placeholder: "Search", "aria-label": "Search captions and file names", oninput: () => acts.look() });
  const filter = make("select", { "aria-label": "Which pictures are shown", onchange: () => acts.look() });
  const options = Object.keys(FILTERS).map((value) => make("option", { value }));
  filter.append(...options);
  const overlay = tool("Crop", "Show on each picture what is cut off", () => acts.overlay(flip(overlay)), { "aria-pressed": "false" });
  const wide = tool("Enlarge", "Use the whole window, or not any more", () => {
    acts.enlarge(flip(wide));
    wide.textContent = wide.getAttribute("aria-pressed") === "true" ? "Back to the form" : "Enlarge";
  }, { "aria-pressed": "false" });
  const flip = (pressed) => {
    const isOn = pressed.getAttribute("aria-pressed") !== "true";
    pressed.setAttribute("aria-pressed", String(isOn));
    return isOn;
  };

  const matches = (picture) => {
    const words = search.value.trim().toLowerCase();
    const isFound = !words || `${picture.source}\n${picture.caption}\n${picture.text}`.toLowerCase().includes(words);
    return isFound && FILTERS[filter.value][1](picture);
  };

  // ---- forms that unfold under the bar

  const forms = make("div", { class: "forms" });
  const unfolding = (text, title, form) => {
    form.hidden = true;
    forms.append(form);
    const opener = tool(text, title, () => unfold(form.hidden ? form : null), { "aria-expanded": "false" });
    form.opener = opener;
    return opener;
  };
  const unfold = (wanted) => {
    for (const form of forms.children) {
      form.hidden = form !== wanted;
      form.opener.setAttribute("aria-expanded", String(form === wanted));
    }
    if (wanted) wanted.querySelector("input, button").focus();
    count();
  };
  const submitted = (form, onsubmit) => {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      onsubmit();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      unfold(null);
      form.opener.focus();
    });
    return form;
  };
  const go = (text) => make("button", { class: "button small primary", text });

  const [findLabel, find] = field("Find", { oninput: () => count() });
  const [replaceLabel, replacement] = field("Replace with");
  const matchCase = make("input", { type: "checkbox", onchange: () => count() });
  const wholeWords = make("input", { type: "checkbox", onchange: () => count() });
  const check = (input, text) => make("label", { class: "check" }, input, make("span", { text }));
  const replaceGo = go("Replace");
  const found = make("span", { class: "quiet", role: "status" });
  const replacing = submitted(
    make("form", {}, findLabel, replaceLabel, check(matchCase, "Match case"), check(wholeWords, "Whole words"), replaceGo, found),
    () => find.value && acts.replace({ find: find.value, replacement: replacement.value, matches_case: matchCase.checked, whole_words: wholeWords.checked }),
  );

  const [prefixLabel, prefix] = field("Put before");
  const [suffixLabel, suffix] = field("Put after");
  const addGo = go("Add");
  const adding = submitted(make("form", {}, prefixLabel, suffixLabel, addGo), async () => {
    if ((prefix.value || suffix.value) && (await acts.add(prefix.value, suffix.value))) prefix.value = suffix.value = "";
  });

  const download = tool("Download", "A ZIP of .txt files", () => acts.download());
  const file = make("input", { type: "file", accept: ".zip", hidden: true, "aria-label": "Captions as a ZIP", onchange: () => sendFile() });
  const upload = tool("Upload", "A ZIP of .txt files, named like the pictures", () => file.click());
  const sendFile = async () => {
    const [given] = file.files;
    file.value = "";
    if (!given) return;
    upload.disabled = true;
    await acts.upload(given);
    upload.disabled = false;
  };
  const exchanging = submitted(
    make("form", {}, download, upload, file, make("span", { class: "quiet", text: "All captions as .txt files in a ZIP: change them elsewhere, and bring them back." })),
    () => {},
  );

  const keys = make("dl", {}, ...KEYS.flatMap(([key, words]) => [make("dt", {}, make("kbd", { text: inKeys(key) })), make("dd", { text: words })]));
  const helping = submitted(make("form", { class: "help" }, keys, tool("Close", "", () => unfold(null))), () => {});

  // ---- the bar

  const undo = tool("↶", "", () => acts.undo(), { "aria-label": "Undo" });
  const redo = tool("↷", "", () => acts.redo(), { "aria-label": "Redo" });
  const exclude = tool("Exclude", "Leave out of the training (Delete)", () => acts.exclude());
  const describe = tool("Describe", "Let the captioner describe them again (R)", () => acts.describe());
  const all = tool("Select all", "Ctrl A", () => acts.select());
  const bar = make(
    "div",
    { class: "tools", role: "toolbar", "aria-label": "Captions" },
    make("div", { class: "looking" }, search, filter, overlay, wide),
    make(
      "div",
      { class: "actions" },
      all, exclude, describe,
      unfolding("Replace", "Find and replace in captions", replacing),
      unfolding("Add words", "Put words before or after captions", adding),
      undo, redo,
      unfolding("Files", "Download or upload all captions", exchanging),
      unfolding("?", "Keys", helping),
    ),
    forms,
  );
  bar.querySelector("[title='Keys']").setAttribute("aria-label", "Keys");

  // How often the words are found, while they are typed.
  const count = () => {
    const { texts, isChosen } = acts.scope();
    const where = isChosen ? "selected" : "shown";
    const written = texts.filter(Boolean).length;
    addGo.textContent = `Add to ${counted(written, "caption")}`;
    addGo.disabled = !written;
    const word = find.value;
    const pieces = word ? texts.map((text) => (text.match(pattern(word, matchCase.checked, wholeWords.checked)) || []).length) : [];
    const total = pieces.reduce((sum, one) => sum + one, 0);
    const captions = pieces.filter(Boolean).length;
    found.textContent = !word ? "" : total ? `${counted(total, "match").replace("matchs", "matches")} in ${counted(captions, "caption")}, of ${texts.length} ${where}` : `No match in ${counted(texts.length, "caption")} ${where}`;
    replaceGo.disabled = !total;
  };

  // Follow what is known of the pictures and what is selected.
  const follow = (told, chosen) => {
    Object.values(FILTERS).forEach(([title, holds], place) => {
      const text = `${title} (${told.pictures.filter(holds).length})`;
      if (options[place].textContent !== text) options[place].textContent = text;
    });
    undo.disabled = !told.undo;
    redo.disabled = !told.redo;
    undo.title = told.undo ? `Undo: ${told.undo} (${inKeys("Ctrl Z")})` : "There is nothing to undo";
    redo.title = told.redo ? `Redo: ${told.redo} (${inKeys("Ctrl Shift Z")})` : "There is nothing to redo";
    exclude.disabled = describe.disabled = !chosen.length;
    exclude.textContent = chosen.length && chosen.every((picture) => picture.is_excluded) ? "Include" : "Exclude";
    all.textContent = chosen.length ? `${chosen.length} selected ×` : "Select all";
    count();
  };

  return { bar, matches, follow, search, help: () => unfold(helping.hidden ? helping : null), shrink: () => wide.getAttribute("aria-pressed") === "true" && wide.click() };
};
