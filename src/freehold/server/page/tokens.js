// Which token of an answer each of its characters came from.

/**
 * The tokens are given as the server sampled them, the text as it was sent: without the markers around reasoning and
 * tool calls, and later where something was held back. Spans are {start, end, token}, ascending, in a channel's text.
 */
export class TokenMap {
  #decoder = new TextDecoder();
  #pending = ""; // characters of tokens that no text was found for yet
  #owners = []; // for each of them, its token
  #spans = { content: [], reasoning: [] };
  #lengths = { content: 0, reasoning: 0 };

  /** Texts of all tokens, in order. */
  texts = [];

  /** Takes log-probability entries in. */
  push(entries) {
    for (const entry of entries) {
      const text = this.#decoder.decode(new Uint8Array(entry.bytes), { stream: true });
      for (let i = 0; i < text.length; i++) this.#owners.push(this.texts.length);
      this.#pending += text;
      this.texts.push(entry.token);
    }
  }

  /** Takes in text that was sent for a channel: "content" or "reasoning". */
  text(channel, text) {
    if (!text) return;
    // Usually it is what comes next. After a marker it is at the end of what has come.
    const place = this.#pending.startsWith(text) ? 0 : this.#pending.lastIndexOf(text);
    const base = this.#lengths[channel];
    this.#lengths[channel] += text.length;
    if (place < 0) {
      this.#add(channel, base, base + text.length, this.texts.length - 1);
      return;
    }
    for (let i = 0; i < text.length; i++) this.#add(channel, base + i, base + i + 1, this.#owners[place + i]);
    this.#pending = this.#pending.slice(place + text.length);
    this.#owners = this.#owners.slice(place + text.length);
  }

  #add(channel, start, end, token) {
    const spans = this.#spans[channel];
    const last = spans.at(-1);
    if (last !== undefined && last.token === token && last.end === start) last.end = end;
    else if (token >= 0) spans.push({ start, end, token });
  }

  /** The spans of a channel. */
  spans(channel) {
    return this.#spans[channel];
  }
}

/** Appends text[start, end) to `parent`, each token in a span of its own that carries its number. */
export function appendTokens(parent, text, start, end, spans) {
  let low = 0;
  let high = spans.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans[middle].end <= start) low = middle + 1;
    else high = middle;
  }
  let at = start;
  for (let i = low; i < spans.length && spans[i].start < end; i++) {
    const from = Math.max(start, spans[i].start);
    const to = Math.min(end, spans[i].end);
    if (from > at) parent.append(text.slice(at, from));
    const node = document.createElement("span");
    node.className = "t";
    node.dataset.token = String(spans[i].token);
    node.textContent = text.slice(from, to);
    parent.append(node);
    at = to;
  }
  if (at < end) parent.append(text.slice(at, end));
}
