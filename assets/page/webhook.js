// The card of a run's webhook: what was told to which address, and what came of it.
const webhookCard = (sendAgain) => {
  let shown = "";
  const card = make("section", { class: "card webhook", "aria-label": "Webhook", hidden: true });

  const at = (seconds) => new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
  const outcome = (delivery) => {
    if (delivery.next_time !== null) return delivery.next_time * 1000 > Date.now() ? `next try: ${at(delivery.next_time)}` : "being sent …";
    return delivery.is_delivered ? "delivered" : "given up";
  };
  const attempts = (delivery) =>
    delivery.attempts.map((one) => make("li", {}, make("time", { text: at(one.time) }), make("span", { text: one.answer })));
  const row = (delivery) => {
    const label = `Send again what was told to ${delivery.address}`;
    const again = make("button", { class: "button small", type: "button", text: "Send again", "aria-label": label });
    again.addEventListener("click", () => sendAgain(again, delivery.id));
    return make(
      "div",
      {},
      make("div", { class: "actions" }, make("code", { text: delivery.address }), make("span", { class: "outcome", role: "status", text: outcome(delivery) }), again),
      make("ol", {}, ...attempts(delivery)),
    );
  };

  // Returns whether something will come of it soon.
  const show = (told) => {
    card.hidden = !told;
    if (!told) return false;
    const isPending = told.deliveries.some((one) => one.next_time !== null);
    const made = JSON.stringify([told, told.deliveries.map(outcome)]);
    if (made === shown) return isPending;
    shown = made;
    const hadFocus = card.contains(document.activeElement);
    card.replaceChildren(make("h3", { text: "Webhook" }), ...told.deliveries.map(row));
    if (!told.deliveries.length) card.append(make("p", {}, make("code", { text: told.address }), make("span", { text: " is told when the run has ended." })));
    if (hadFocus) card.querySelector("button").focus();
    return isPending;
  };

  const clear = () => {
    shown = "";
    card.hidden = true;
  };
  return { card, show, clear };
};
