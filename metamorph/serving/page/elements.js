// DOM nodes. Text from the model and from users is only ever set as text, never as markup.

/** An element; attributes named `on...` are listeners, those that are false or null are left out. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A button of words. */
export function action(label, onclick, attributes = {}) {
  return element("button", { type: "button", class: "link", onclick, ...attributes }, label);
}

/** Whether a button does something now. It keeps the focus, which one that is disabled would lose. */
export function able(button, yes) {
  button.ariaDisabled = String(!yes);
}

/** Brings an element's text to `text`, by appending where that is enough: a selection stays. */
export function setText(node, text) {
  const shown = node.textContent;
  if (shown === text) return;
  if (shown && text.startsWith(shown)) node.lastChild.appendData(text.slice(shown.length));
  else node.textContent = text;
}

/** Shows words in an element, or hides it where there are none. */
export function say(node, words) {
  setText(node, words);
  node.hidden = !words;
}

/** Copies text. Browsers have no clipboard for pages of plain http but for the older command. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { class: "unseen" });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
