// The panels beside the conversation: which are open, and where the keyboard goes.

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 62rem)");

const panels = [];

/** One panel and its button. replaces: a name for those of which one at a time is open. onToggle(open). */
export class Panel {
  constructor(id, replaces, onToggle = () => {}) {
    this.node = byId(id);
    this.button = byId(`open-${id}`);
    this.replaces = replaces;
    this.onToggle = onToggle;
    panels.push(this);
    this.node.tabIndex = -1;
    this.button.addEventListener("click", (event) => {
      this.toggle(this.node.hidden);
      // No pointer: the keyboard goes along, or the panel would be far away.
      if (event.detail === 0 && !this.node.hidden) this.node.focus();
    });
    for (const node of [this.node, this.button]) {
      node.addEventListener("keydown", (event) => {
        if (event.key === "Escape" && !this.node.hidden) this.toggle(false, true);
      });
    }
  }

  /** Opens or closes it. back: the keyboard returns to the button. */
  toggle(open, back = false) {
    for (const other of open ? panels : []) {
      if (other !== this && !other.node.hidden && (narrow.matches || other.replaces === this.replaces)) other.toggle(false);
    }
    this.node.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    this.onToggle(open);
    if (back) this.button.focus();
    cover();
  }

  /** Closes it where it covers the conversation. */
  giveWay() {
    if (narrow.matches) this.toggle(false);
  }
}

/** What lies under a panel cannot be used until it is closed. */
function cover() {
  byId("main").inert = narrow.matches && panels.some((panel) => !panel.node.hidden);
}

narrow.addEventListener("change", () => {
  for (const panel of panels) if (narrow.matches && !panel.node.hidden) panel.toggle(false);
  cover();
});

document.addEventListener("click", (event) => {
  if (!narrow.matches || event.target.closest(".side, .bar, dialog") || !event.target.isConnected) return;
  for (const panel of panels) if (!panel.node.hidden) panel.toggle(false);
});

/** On wide windows the conversations are there from the beginning. */
export function isWide() {
  return !narrow.matches;
}
