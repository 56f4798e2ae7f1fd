// Elements, made without ever parsing text as HTML.

/**
 * An element. attributes: names as in HTML; `class`, `text` and functions named `on...` are what they look like;
 * undefined, null and false leave an attribute out, true sets it without a value.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with this id; an error where the page has none. */
export function byId(id) {
  const node = document.getElementById(id);
  if (node === null) throw new Error(`the page has no element #${id}`);
  return node;
}

/** A button that says what it does. */
export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", class: "quiet", text, onclick, ...attributes });
}

/** A count as people read it. */
export function count(number) {
  return Math.round(number).toLocaleString("en");
}

/** "1 token", "2 tokens". */
export function counted(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** Says something to screen readers, without moving the focus. */
export function announce(text) {
  byId("announce").textContent = text;
}

/** A copy button for what `text()` gives. */
export function copyButton(text, label = "Copy") {
  const copy = button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      copy.textContent = "Copied";
    } catch {
      // Browsers have no clipboard for pages of plain http from another machine.
      copy.textContent = copyBySelection(text()) ? "Copied" : "Cannot copy";
    }
    announce(copy.textContent);
    setTimeout(() => (copy.textContent = label), 1500);
  });
  return copy;
}

function copyBySelection(text) {
  const field = el("textarea", { class: "hidden" });
  field.value = text;
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
