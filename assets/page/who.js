// Who is signed in, with a button to sign out; and a word when the sign-in has ended while the page was open.

const LOOK_AGAIN = 60000;
const view = make("div", { class: "who" });

const show = (told) => {
  const out = make("form", { method: "post", action: absolute("logout") }, make("button", { class: "button small", text: "Sign out" }));
  if (told.name) view.replaceChildren(make("span", { class: "name", text: told.name, title: told.name }), out);
  else if (told.can_sign_in) view.replaceChildren(make("a", { href: absolute("login"), text: "Sign in" }));
};

const ended = make(
  "div",
  { class: "notice warn ended", role: "alert", hidden: true },
  make("span", { text: "You are signed out. What you see is kept until you leave." }),
  make("a", { class: "button small", href: absolute("login") + location.search, text: "Sign in" }),
);

const look = async () => {
  let status = 0;
  try {
    status = (await fetch(absolute("gradio_api/login_check"), { cache: "no-store" })).status;
  } catch {} // the connection is lost, of which the live view speaks
  if (status) ended.hidden = status !== 401;
};

view.append(ended);
keepIn(view);
server
  .who({})
  .then((told) => {
    if (!told || told.error) return;
    show(told);
    view.append(ended);
    if (told.name) repeat(async () => (await look(), LOOK_AGAIN));
  })
  .catch(() => {});
