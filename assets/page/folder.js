// Folders for the field above: dropped on it or chosen here, their files go into it one by one, each under its path.
const field = () => document.querySelector("#pictures-zip input[type=file]");
const chooser = make("input", { type: "file", hidden: true, tabindex: "-1" });
const view = make("div", {}, button("Choose a folder", "small", () => chooser.click()), chooser);
chooser.webkitdirectory = true;

const isRead = (name) => props.value.includes(name.slice(name.lastIndexOf(".")).toLowerCase());

// What is not read stays at home, but for its name, so that the report can list it.
const named = (file, path) => new File(isRead(path) ? [file] : [], path, { type: file.type });

const filesIn = async (entry, above) => {
  const path = above + entry.name;
  if (entry.isFile) {
    return [named(await new Promise((found, failed) => entry.file(found, failed)), path)];
  }
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((found, failed) => reader.readEntries(found, failed)); // a hundred at a time
    if (!some.length) return files;
    for (const one of some) files.push(...(await filesIn(one, `${path}/`)));
  }
};

const hand = (files) => {
  const input = field();
  if (!input || !files.length) return;
  const carried = new DataTransfer();
  for (const file of files) carried.items.add(file);
  input.files = carried.files;
  input.dispatchEvent(new Event("change"));
};

document.addEventListener(
  "drop",
  async (event) => {
    const zone = event.target instanceof Element && event.target.closest("#pictures-zip");
    const entries = [...((event.dataTransfer && event.dataTransfer.items) || [])].map((item) => item.webkitGetAsEntry());
    if (!zone || !entries.some((entry) => entry && entry.isDirectory)) return; // Gradio does that
    event.preventDefault();
    event.stopPropagation();
    const files = [];
    for (const entry of entries.filter(Boolean)) files.push(...(await filesIn(entry, "")));
    hand(files);
  },
  true,
);

chooser.addEventListener("change", () => {
  hand([...chooser.files].map((file) => named(file, file.webkitRelativePath || file.name)));
  chooser.value = "";
});

repeat(async () => {
  keepIn(view);
  view.hidden = !field();
  return 1000;
});
