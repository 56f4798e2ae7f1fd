// The Markdown that models write, as elements. Text only ever becomes text nodes; links and images stay as written,
// so that nothing in an answer leads out of this machine.
//
// Every piece of text is named by its place [start, end) in the source, so that tokens can be found again in it.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,12}(```+|~~~+)([^`]*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])[ \t]+/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** The lines of `text` as {start, end}, without their ends. */
function linesOf(text) {
  const lines = [];
  for (let start = 0; start <= text.length; ) {
    const found = text.indexOf("\n", start);
    const end = found < 0 ? text.length : found;
    lines.push({ start, end });
    start = end + 1;
  }
  return lines;
}

/** The blocks of a text: {kind, start, end, ...}. Linear in its length. */
export function blocksOf(text) {
  const lines = linesOf(text);
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    const line = text.slice(lines[i].start, lines[i].end);
    if (!line.trim()) i += 1;
    else if (FENCE.test(line)) i = fenced(text, lines, i, blocks);
    else if (RULE.test(line)) blocks.push({ kind: "rule", ...lines[i++] });
    else if (HEADING.test(line)) {
      const found = HEADING.exec(line);
      blocks.push({ kind: "heading", level: found[1].length, skip: found[0].length, ...lines[i++] });
    } else if (isTable(text, lines, i)) i = gathered("table", text, lines, i, blocks, (next) => next.includes("|"));
    else if (QUOTE.test(line)) i = gathered("quote", text, lines, i, blocks, (next) => QUOTE.test(next));
    else if (ITEM.test(line)) i = gathered("list", text, lines, i, blocks, (next) => ITEM.test(next) || /^\s+\S/.test(next));
    else i = gathered("paragraph", text, lines, i, blocks, (next) => !startsBlock(next));
  }
  return blocks;
}

function startsBlock(line) {
  return !line.trim() || [FENCE, RULE, HEADING, QUOTE, ITEM].some((pattern) => pattern.test(line));
}

function isTable(text, lines, i) {
  if (i + 1 >= lines.length) return false;
  const [head, divider] = [lines[i], lines[i + 1]].map(({ start, end }) => text.slice(start, end));
  return head.includes("|") && divider.includes("-") && divider.includes("|") && DIVIDER.test(divider);
}

function fenced(text, lines, i, blocks) {
  const [, fence, language] = FENCE.exec(text.slice(lines[i].start, lines[i].end));
  let close = i + 1;
  const closes = ({ start, end }) => {
    const line = text.slice(start, end).trim();
    return line.length >= fence.length && [...line].every((letter) => letter === fence[0]);
  };
  while (close < lines.length && !closes(lines[close])) close += 1;
  const bodyStart = Math.min(lines[i].end + 1, text.length);
  const bodyEnd = close > i + 1 ? lines[close - 1].end : bodyStart;
  const end = close < lines.length ? lines[close].end : text.length;
  blocks.push({ kind: "code", language: language.trim(), start: lines[i].start, end, bodyStart, bodyEnd });
  return close + 1;
}

/** A block of this line and those after it that belong to it. */
function gathered(kind, text, lines, i, blocks, belongs) {
  let last = i;
  while (last + 1 < lines.length) {
    const next = text.slice(lines[last + 1].start, lines[last + 1].end);
    if (!belongs(next) || FENCE.test(next)) break;
    last += 1;
  }
  blocks.push({ kind, start: lines[i].start, end: lines[last].end, lines: lines.slice(i, last + 1) });
  return last + 1;
}

/** One block as an element. leaf(parent, start, end) appends that part of the text. */
export function renderBlock(text, block, leaf) {
  switch (block.kind) {
    case "code":
      return codeBlock(text, block, leaf);
    case "rule":
      return el("hr");
    case "heading": {
      // The page's own headings are h1 and h2.
      const heading = el(`h${Math.min(block.level + 2, 6)}`);
      inline(text, heading, block.start + block.skip, block.end, leaf);
      return heading;
    }
    case "quote":
      return quote(text, block, leaf);
    case "list":
      return list(text, block, leaf);
    case "table":
      return table(text, block, leaf);
    default: {
      const paragraph = el("p");
      inline(text, paragraph, block.start, block.end, leaf);
      return paragraph;
    }
  }
}

function codeBlock(text, block, leaf) {
  const code = el("code");
  leaf(code, block.bodyStart, block.bodyEnd);
  const copy = copyButton(() => text.slice(block.bodyStart, block.bodyEnd), "Copy");
  copy.setAttribute("aria-label", "Copy the code");
  const head = el("div", { class: "code-head" }, el("span", { text: block.language || "text" }), copy);
  const label = `Code${block.language ? `, ${block.language}` : ""}`;
  const body = el("pre", { tabindex: "0", role: "region", "aria-label": label }, code);
  return el("div", { class: "code" }, head, body);
}

function quote(text, block, leaf) {
  const paragraph = el("p");
  for (const { start, end } of block.lines) {
    const mark = QUOTE.exec(text.slice(start, end));
    if (paragraph.hasChildNodes()) paragraph.append("\n");
    inline(text, paragraph, start + (mark ? mark[0].length : 0), end, leaf);
  }
  return el("blockquote", {}, paragraph);
}

function list(text, block, leaf) {
  const levels = []; // {indent, node}, outermost first
  let item = null;
  for (const { start, end } of block.lines) {
    const found = ITEM.exec(text.slice(start, end));
    if (found === null) {
      item.append("\n");
      inline(text, item, start + /^\s*/.exec(text.slice(start, end))[0].length, end, leaf);
      continue;
    }
    const indent = found[1].replaceAll("\t", "    ").length;
    while (levels.length > 1 && indent < levels.at(-1).indent) levels.pop();
    const ordered = /\d/.test(found[2]);
    if (levels.length === 0 || indent > levels.at(-1).indent + 1) {
      const node = el(ordered ? "ol" : "ul");
      item?.append(node);
      levels.push({ indent, node });
    }
    item = el("li");
    if (ordered) item.value = Number.parseInt(found[2], 10);
    levels.at(-1).node.append(item);
    inline(text, item, start + found[0].length, end, leaf);
  }
  return levels[0].node;
}

function table(text, block, leaf) {
  const [head, , ...rows] = block.lines;
  const row = ({ start, end }, tag) => {
    const cells = el("tr");
    for (const cell of cellsOf(text, start, end)) {
      const node = el(tag);
      inline(text, node, cell.start, cell.end, leaf);
      cells.append(node);
    }
    return cells;
  };
  const top = el("thead", {}, row(head, "th"));
  const body = el("tbody", {}, ...rows.map((line) => row(line, "td")));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {}, top, body));
}

function cellsOf(text, start, end) {
  const cells = [];
  let from = start;
  for (let i = start; i <= end; i++) {
    if (i < end && (text[i] !== "|" || text[i - 1] === "\\")) continue;
    const raw = text.slice(from, i);
    const left = from + (raw.length - raw.trimStart().length);
    // Bars at both ends of the line are its frame.
    if (raw.trim() || (from !== start && i < end)) cells.push({ start: Math.min(left, i), end: Math.max(Math.min(left, i), i - (raw.length - raw.trimEnd().length)) });
    from = i + 1;
  }
  return cells;
}

// Where nothing closes a mark, looking for its end costs so many characters at most.
const REACH = 4000;
const MARK = /(`+)|(\*\*\*|\*\*|\*)(?=\S)|(?<![\p{L}\p{N}_])(__|_)(?=\S)|\\([\\`*_{}[\]()#+\-.!|>~])/gu;

/** Text with code spans, strong and emphasised parts, in text[start, end). */
function inline(text, parent, start, end, leaf) {
  let at = start;
  const plain = (to) => to > at && leaf(parent, at, to);
  MARK.lastIndex = start;
  for (let found; (found = MARK.exec(text)) !== null && found.index < end; ) {
    const [mark, ticks, , , escaped] = found;
    const open = found.index + mark.length;
    if (escaped !== undefined) {
      plain(found.index);
      at = found.index + 1;
      continue;
    }
    const close = ticks ? closeOfTicks(text, mark, open, end) : closeOfMark(text, mark, open, end);
    if (close < 0) {
      MARK.lastIndex = Math.max(open, MARK.lastIndex);
      continue;
    }
    plain(found.index);
    const node = el(ticks ? "code" : mark.length === 1 ? "em" : "strong");
    if (ticks) leaf(node, open, close);
    else inline(text, node, open, close, leaf);
    parent.append(node);
    at = close + mark.length;
    MARK.lastIndex = at;
  }
  plain(end);
}

function closeOfTicks(text, mark, open, limit) {
  const end = Math.min(limit, open + REACH);
  for (let i = text.indexOf(mark, open); i >= 0 && i + mark.length <= end; i = text.indexOf(mark, i)) {
    let last = i;
    while (text[last] === "`") last += 1;
    if (last - i === mark.length) return i;
    i = last;
  }
  return -1;
}

function closeOfMark(text, mark, open, limit) {
  const end = Math.min(limit, open + REACH);
  for (let i = text.indexOf(mark, open + 1); i >= 0 && i + mark.length <= end; i = text.indexOf(mark, i + 1)) {
    const after = text[i + mark.length] ?? " ";
    if (/\s/.test(text[i - 1])) continue;
    // A longer run belongs to another mark; underscores inside words are letters.
    if (after === mark[0] && mark.length < 3) {
      i += 1;
      continue;
    }
    if (mark[0] === "_" && /[\p{L}\p{N}]/u.test(after)) continue;
    return i;
  }
  return -1;
}

/** A text in an element that grows: blocks that did not change since the last `show` stay as they are. */
export class MarkdownView {
  #node;
  #shown = []; // {key, node}

  constructor(node) {
    this.#node = node;
  }

  /** Shows `text`. leaf: as for renderBlock; a new one makes everything anew. */
  show(text, leaf = null) {
    const plain = (parent, start, end) => parent.append(text.slice(start, end));
    const blocks = blocksOf(text);
    const keys = blocks.map((b) => (leaf ? "" : `${b.kind} ${b.language ?? ""} ${text.slice(b.start, b.end)}`));
    let same = 0;
    while (!leaf && same < keys.length && this.#shown[same]?.key === keys[same]) same += 1;
    for (const { node } of this.#shown.splice(same)) node.remove();
    for (let i = same; i < blocks.length; i++) {
      const node = renderBlock(text, blocks[i], leaf ?? plain);
      this.#node.append(node);
      this.#shown.push({ key: keys[i], node });
    }
  }
}
