// The panels beside the conversation: which are open, and where the keyboard goes.

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 62rem)");

/** One panel and its button. others: those that this one replaces. onToggle(open). */
export class Panel {
  constructor(id, onToggle = () => {}) {
    this.node = byId(id);
    this.button = byId(`open-${id}`);
    this.onToggle = onToggle;
    this.others = [];
    this.button.addEventListener("click", () => this.toggle(this.node.hidden));
    this.node.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.toggle(false, true);
    });
  }

  /** Opens or closes it. back: the keyboard returns to the button. */
  toggle(open, back = false) {
    if (open) for (const other of this.others) if (!other.node.hidden) other.toggle(false);
    this.node.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    this.onToggle(open);
    if (back) this.button.focus();
  }

  /** Closes it where it covers the conversation. */
  giveWay() {
    if (narrow.matches) this.toggle(false);
  }
}

/** On wide windows the conversations are there from the beginning. */
export function isWide() {
  return !narrow.matches;
}
