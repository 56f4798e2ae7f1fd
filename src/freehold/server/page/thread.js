// The messages of one conversation.

import { MarkdownView } from "./markdown.js";
import { appendTokens } from "./tokens.js";
import { button, byId, copyButton, count, counted, el } from "./dom.js";
import { sizeText } from "./files.js";

/**
 * Shows a conversation. on: edit(index, text), regenerate(index), token(message, token, text) where a token was pointed
 * at, with null when none is any more.
 */
export class Thread {
  #node = byId("thread");
  #views = new Map(); // message -> view
  #changed = new Set();
  #chat = null;

  constructor(on) {
    this.on = on;
  }

  /** Shows a conversation from its beginning. */
  show(chat) {
    this.#chat = chat;
    this.#views.clear();
    this.#changed.clear();
    this.#node.replaceChildren();
    if (chat.messages.length === 0) this.#node.append(greeting());
    for (const message of chat.messages) this.#append(message);
    this.#node.scrollTop = this.#node.scrollHeight;
  }

  /** A message changed or is new; drawn with the next frame. */
  update(message) {
    if (!this.#chat?.messages.includes(message)) return;
    if (this.#changed.size === 0) requestAnimationFrame(() => this.#draw());
    this.#changed.add(message);
  }

  #draw() {
    const { scrollTop, scrollHeight, clientHeight } = this.#node;
    const atEnd = scrollHeight - scrollTop - clientHeight < 60;
    for (const message of this.#changed) {
      const view = this.#views.get(message);
      if (view) view.draw();
      else this.#append(message);
    }
    this.#changed.clear();
    if (atEnd) this.#node.scrollTop = this.#node.scrollHeight;
  }

  #append(message) {
    this.#node.querySelector(".greeting")?.remove();
    const index = this.#chat.messages.indexOf(message);
    const view = message.role === "user" ? new UserView(message, index, this.on) : new AnswerView(message, index, this.on);
    this.#views.set(message, view);
    this.#node.append(view.node);
    view.draw();
  }

  /** Marks the messages that a token was made from. shares: message -> part of 1; null ends it. */
  markMessages(shares) {
    for (const [message, { node }] of this.#views) {
      const part = shares?.get(message) ?? 0;
      node.classList.toggle("source", part >= 0.005);
      node.style.setProperty("--part", String(Math.max(0.25, part)));
    }
  }

  /** Marks tokens of one answer; none where `tokens` is empty. */
  markTokens(message, tokens, kind) {
    for (const node of this.#node.querySelectorAll(`.t.${kind}`)) node.classList.remove(kind);
    const view = this.#views.get(message);
    if (!view || tokens.length === 0) return;
    const wanted = new Set(tokens.map(String));
    for (const node of view.node.querySelectorAll(".t")) node.classList.toggle(kind, wanted.has(node.dataset.token));
  }
}

function greeting() {
  return el(
    "div",
    { class: "greeting" },
    el("h2", { text: "What would you like to know?" }),
    el("p", { text: "Everything you write stays between this browser and this server." }),
    el("p", { class: "hint", text: "Drop text files anywhere to add them to a message." }),
  );
}

class UserView {
  constructor(message, index, on) {
    this.message = message;
    this.on = on;
    this.index = index;
    this.body = el("div", { class: "body said" });
    this.edit = button("Edit", () => this.#startEdit(), { "aria-label": "Edit this message" });
    this.tools = el("div", { class: "tools" }, this.edit, copyButton(() => message.text));
    this.node = el("article", { class: "message user", "aria-label": "You" }, this.body, this.tools);
  }

  draw() {
    this.body.replaceChildren(el("p", { text: this.message.text }), ...attachmentNodes(this.message));
  }

  #startEdit() {
    const field = el("textarea", { rows: "3", "aria-label": "The message" });
    field.value = this.message.text;
    const close = () => {
      form.replaceWith(this.body);
      this.tools.hidden = false;
      this.edit.focus();
    };
    const save = () => {
      close();
      this.on.edit(this.index, field.value);
    };
    const form = el(
      "form",
      { class: "edit", onsubmit: (event) => (event.preventDefault(), save()) },
      field,
      el("div", { class: "row" }, button("Cancel", close), el("button", { type: "submit", class: "primary", text: "Send again" })),
    );
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (isSend(event)) event.preventDefault(), save();
    });
    this.tools.hidden = true;
    this.body.replaceWith(form);
    field.focus();
  }
}

/** Enter alone, and not the one that ends the input of a character. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function attachmentNodes({ files = [], images = [] }) {
  if (files.length + images.length === 0) return [];
  const shown = files.map(({ name, size, text }) =>
    el("details", { class: "file" }, el("summary", {}, el("span", { text: name }), el("small", { text: sizeText(size) })), el("pre", { text })),
  );
  return [...shown, ...images.map(({ name, url }) => el("img", { src: url, alt: name }))];
}

class AnswerView {
  constructor(message, index, on) {
    this.message = message;
    this.on = on;
    this.reasoning = el("div", { class: "body" });
    this.summary = el("summary");
    this.fold = el("details", { class: "reasoning", hidden: true }, this.summary, this.reasoning);
    this.progress = el("div", { class: "progress", hidden: true });
    this.body = el("div", { class: "body" });
    this.calls = el("div", { class: "calls" });
    this.state = el("p", { class: "state" });
    this.views = { content: new MarkdownView(this.body), reasoning: new MarkdownView(this.reasoning) };
    this.again = button("Regenerate", () => on.regenerate(index));
    this.tools = el("div", { class: "tools" }, this.again, copyButton(() => message.text));
    const parts = [this.fold, this.progress, this.body, this.calls, this.state, this.tools];
    this.node = el("article", { class: "message answer", "aria-label": "Answer" }, ...parts);
    this.cursor = null;
    for (const part of [this.body, this.reasoning]) this.#listen(part);
  }

  draw() {
    const { message } = this;
    const running = message.state === "running";
    this.node.setAttribute("aria-busy", String(running));
    this.fold.hidden = !message.reasoning;
    this.summary.textContent = running && !message.text ? "Reasoning …" : "Reasoning";
    this.#drawText("reasoning", message.reasoning ?? "", running);
    this.#drawText("content", message.text, running);
    this.#drawProgress(running);
    this.calls.replaceChildren(...(message.calls ?? []).map(callNode));
    this.state.className = `state ${message.state}`;
    this.state.textContent = stateText(message);
    this.tools.hidden = running;
  }

  #drawText(channel, text, running) {
    const spans = spansOf(this.message, channel);
    if (running || !spans) this.views[channel].show(text);
    else this.views[channel].show(text, (parent, start, end) => appendTokens(parent, text, start, end, spans));
    const body = channel === "content" ? this.body : this.reasoning;
    const walkable = !running && spans?.length > 0;
    body.toggleAttribute("data-walk", walkable);
    if (walkable) {
      body.tabIndex = 0;
      body.setAttribute("role", "group");
      body.setAttribute("aria-label", "Text of the answer. Arrow keys go through its tokens and show what each was made from.");
    }
  }

  #drawProgress(running) {
    const { run, text, reasoning, calls } = this.message;
    const reading = running && run && !text && !reasoning && !(calls?.length > 0);
    this.progress.hidden = !reading;
    if (!reading) return this.progress.replaceChildren();
    const known = run.promptTokens > 0;
    const words = known ? `Reading the prompt: ${count(run.promptRead)} of ${counted(run.promptTokens, "token")}` : "Waiting";
    if (!this.bar) this.bar = el("progress", { "aria-label": "Prompt read", max: "1" });
    if (known) this.bar.value = run.promptRead / run.promptTokens;
    this.progress.replaceChildren(el("span", { text: words }), this.bar);
  }

  #listen(body) {
    const tokenAt = (target) => target.closest?.(".t")?.dataset.token;
    body.addEventListener("pointerover", (event) => {
      const token = tokenAt(event.target);
      this.#point(token === undefined ? null : Number(token));
    });
    body.addEventListener("pointerleave", () => this.#point(null));
    body.addEventListener("blur", () => this.#point(null));
    body.addEventListener("keydown", (event) => this.#key(event, body));
  }

  #key(event, body) {
    const tokens = [...new Set(Array.from(body.querySelectorAll(".t"), (node) => Number(node.dataset.token)))];
    if (event.target !== body || tokens.length === 0) return;
    const at = tokens.indexOf(this.cursor);
    const moves = { ArrowRight: at + 1, ArrowLeft: at < 0 ? 0 : at - 1, Home: 0, End: tokens.length - 1 };
    if (event.key in moves) this.#point(tokens[Math.min(tokens.length - 1, Math.max(0, moves[event.key]))]);
    else if (event.key === "Escape") this.#point(null);
    else return;
    event.preventDefault();
    body.querySelector(".t.current")?.scrollIntoView({ block: "nearest" });
  }

  #point(token) {
    if (token === this.cursor) return;
    this.cursor = token;
    this.on.token(this.message, token, token === null ? "" : this.message.run.tokens.texts[token]);
  }
}

function spansOf({ run }, channel) {
  return run?.ended ? run.tokens.spans(channel) : null;
}

function callNode({ name, args }) {
  let shown = args;
  try {
    shown = JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    // Not whole yet.
  }
  return el("div", { class: "call" }, el("p", {}, "Calls ", el("code", { text: name })), el("pre", { text: shown, tabindex: "0", role: "region", "aria-label": `Arguments of ${name}` }));
}

const ENDS = { length: "Cut off at the limit of tokens.", tool_calls: "Waits for the result of the call." };

function stateText({ state, error, finish, run }) {
  if (state === "running") return "";
  const parts = [];
  if (state === "stopped") parts.push("Stopped.");
  if (state === "failed") parts.push(error);
  if (ENDS[finish]) parts.push(ENDS[finish]);
  if (run?.ended && run.usage) {
    const { completion_tokens: made, prompt_tokens: asked } = run.usage;
    const pace = run.seconds > 0 && made > 1 ? `, ${((made - 1) / run.seconds).toFixed(1)} a second` : "";
    const cached = run.cachedTokens > 0 ? `${count(run.cachedTokens)} of ${counted(asked, "prompt token")} from cache` : counted(asked, "prompt token");
    parts.push(`${counted(made, "token")}${pace} · ${cached}`);
  }
  return parts.join(" ");
}
