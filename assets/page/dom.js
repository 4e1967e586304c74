// What all page scripts use. Text from people and programs only ever becomes textContent, never markup, and an address
// only one of the web, never a script.
const isLink = (address) => {
  try {
    return ["http:", "https:", "blob:"].includes(new URL(address, location.href).protocol);
  } catch {
    return false;
  }
};

const make = (tag, about = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (["href", "src"].includes(name) && !isLink(value)) continue;
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child));
  return made;
};

const button = (text, kind, onclick) => make("button", { class: `button ${kind}`, type: "button", text, onclick });

const bytes = (count) => {
  if (count == null) return "";
  if (count < 1e6) return `${Math.max(1, Math.round(count / 1e3))} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
};

const copy = async (text, shown, button) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard: mark the text, so that the keys copy it.
    getSelection().selectAllChildren(shown);
    if (!document.execCommand("copy")) return;
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
};

// Links are relative to where the service is mounted, which a proxy or a share link decides.
const absolute = (link) => {
  const root = (window.gradio_config && window.gradio_config.root) || document.baseURI.split(/[?#]/)[0];
  return new URL(link, root.endsWith("/") ? root : root + "/").href;
};

const setAddress = (name, value) => {
  const address = new URL(location.href);
  for (const ours of ["run", "draft"]) address.searchParams.delete(ours);
  if (value) address.searchParams.set(name, value);
  if (address.href !== location.href) history.replaceState(history.state, "", address);
};

const isShown = () => element.isConnected && element.offsetParent !== null;

// A template is rendered anew when its value changes; what the script made has to be put back then.
const keepIn = (view) => {
  const holder = element.querySelector(".holder");
  if (holder && view.parentNode !== holder) holder.replaceChildren(view);
};

// Whether the service is there at all tells a lost connection from a page that has to be loaded again.
const whyItFailed = async () => {
  try {
    const answer = await fetch(absolute("v1/health"), { cache: "no-store" });
    if (answer.ok) return "reload";
  } catch {}
  return "lost";
};

// Call `step` again and again: at once when the component comes into or leaves view, else after as long as `step` asks.
const repeat = (step) => {
  let timer = 0;
  let isBusy = false;
  let isWanted = false;
  let wasInView = false;
  const next = (milliseconds) => {
    clearTimeout(timer);
    timer = setTimeout(go, milliseconds);
  };
  const go = async () => {
    if (isBusy) return void (isWanted = true);
    if (!element.isConnected) return;
    isBusy = true;
    wasInView = isShown();
    let pause = 1000;
    try {
      if (!document.hidden) pause = await step();
    } finally {
      isBusy = false;
      next(isWanted ? 0 : pause);
      isWanted = false;
    }
  };
  new ResizeObserver(() => isShown() !== wasInView && next(0)).observe(element);
  document.addEventListener("visibilitychange", () => !document.hidden && next(0));
  go();
  return () => next(0);
};
