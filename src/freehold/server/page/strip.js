// The strip: one cell for each block of the context, drawn on a canvas, since there may be thousands.

import { byId, count, counted, el } from "./dom.js";

const PITCHES = [16, 12, 9, 7, 5, 4, 3];
const ROOM = 88; // pixels of height that cells may take before they become smaller
const NAMES = { cached: "from cache", read: "read now", written: "written now", coming: "to be read" };

/** Shows one Run at a time. onBlock(run, block): a cell was pointed at; block is null when none is any more. */
export class Strip {
  #canvas = byId("blocks");
  #caption = byId("strip-caption");
  #run = null;
  #token = null; // {run, token, text}, while one is pointed at
  #block = null;
  #layout = { pitch: 16, columns: 1 };
  #colours = {};
  #scheduled = false;

  constructor(onBlock, nameOfMessage) {
    this.onBlock = onBlock;
    this.nameOfMessage = nameOfMessage;
    this.#canvas.addEventListener("pointermove", (event) => this.#point(this.#blockAt(event)));
    this.#canvas.addEventListener("pointerleave", () => this.#point(null));
    this.#canvas.addEventListener("blur", () => this.#point(null));
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#schedule()).observe(this.#canvas.parentElement);
    for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) {
      matchMedia(query).addEventListener("change", () => this.#schedule());
    }
  }

  /** Shows a run, as it is now; null hides the strip. */
  show(run) {
    if (this.#run !== run) this.#token = this.#block = null;
    this.#run = run;
    this.#schedule();
  }

  /** Marks the blocks that a token read; null ends that, and shows `rest` again. */
  showToken(run, token, text, rest) {
    this.#token = token === null ? null : { run, token, text };
    this.#run = token === null ? rest : run;
    this.#block = null;
    this.#schedule();
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#draw();
    });
  }

  #draw() {
    const run = this.#run;
    const section = byId("strip");
    section.hidden = run === null || run.numBlocks === 0 || run.promptTokens === 0;
    if (section.hidden) return;
    const width = this.#canvas.parentElement.clientWidth;
    this.#layOut(run.numBlocks, width);
    const style = getComputedStyle(section);
    for (const name of ["cached", "read", "written", "coming", "mark", "faint"]) {
      this.#colours[name] = style.getPropertyValue(`--cell-${name}`).trim();
    }
    this.#paint(run);
    this.#tell(run);
  }

  #layOut(numBlocks, width) {
    const rows = (pitch) => Math.ceil(numBlocks / Math.max(1, Math.floor(width / pitch)));
    const pitch = PITCHES.find((size) => rows(size) * size <= ROOM) ?? PITCHES.at(-1);
    this.#layout = { pitch, columns: Math.max(1, Math.floor(width / pitch)) };
    const height = rows(pitch) * pitch;
    const scale = window.devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== wide || this.#canvas.height !== high) {
      Object.assign(this.#canvas, { width: wide, height: high });
      this.#canvas.style.width = `${width}px`;
      this.#canvas.style.height = `${height}px`;
    }
  }

  #paint(run) {
    const context = this.#canvas.getContext("2d");
    const scale = window.devicePixelRatio || 1;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    const { pitch, columns } = this.#layout;
    const side = pitch > 5 ? pitch - 2 : pitch - 1;
    const reads = this.#token && run.sparseLayers ? run.readsOf(this.#token.token) : null;
    const most = reads ? Math.max(...reads.values()) : 0;
    for (let block = 0; block < run.numBlocks; block++) {
      const [x, y] = [(block % columns) * pitch, Math.floor(block / columns) * pitch];
      const number = reads?.get(block);
      context.globalAlpha = reads && number === undefined ? 0.28 : 1;
      context.fillStyle = this.#colours[number === undefined ? run.stateOf(block) : "mark"];
      // Seldom read blocks are paler, never as pale as those that were not.
      if (number !== undefined) context.globalAlpha = 0.6 + (0.4 * number) / most;
      context.fillRect(x, y, side, side);
      if (block === this.#block) {
        context.globalAlpha = 1;
        context.strokeStyle = this.#colours.faint;
        context.lineWidth = 2;
        context.strokeRect(x - 0.5, y - 0.5, side + 1, side + 1);
      }
    }
    context.globalAlpha = 1;
  }

  #tell(run) {
    const counts = run.counts();
    const legend = Object.entries(NAMES)
      .filter(([state]) => counts[state] > 0)
      .map(([state, name]) => el("li", { class: state }, el("i", { "aria-hidden": "true" }), `${count(counts[state])} ${name}`));
    byId("legend").replaceChildren(...legend);
    const blocks = `${counted(run.numBlocks, "block")} of ${count(run.blockTokens)} tokens`;
    this.#canvas.setAttribute("aria-label", `${blocks}. Arrow keys go through them.`);
    const read = this.#token && run.sparseLayers ? [...(run.readsOf(this.#token.token)?.keys() ?? [])] : [];
    this.#canvas.dataset.marked = read.join(",");
    const text = this.#words(run, blocks);
    if (this.#caption.textContent !== text) this.#caption.textContent = text;
  }

  #words(run, blocks) {
    if (this.#token) return this.#tokenWords(run);
    if (this.#block !== null) return this.#blockWords(run);
    if (!run.ended && run.generated === 0 && run.promptTokens > 0) {
      // Without numbers: they would be read aloud again and again. The answer has a progress bar.
      return `${blocks}. The prompt is being read.`;
    }
    if (run.sparseLayers === 0) return `${blocks}. Dense model: every token reads everything.`;
    return run.hasReads ? `${blocks}. Point at a word of the answer to see which of them it was made from.` : `${blocks}.`;
  }

  #tokenWords(run) {
    const { token, text } = this.#token;
    const shown = `Token ${count(token + 1)}, “${text.replaceAll("\n", "↵")}”`;
    if (run.sparseLayers === 0) return `${shown}. Dense model: every token reads everything.`;
    const reads = run.readsOf(token);
    if (reads === undefined) return `${shown}: not known which blocks it read.`;
    const shares = [...run.sharesOf(token)].sort((a, b) => b[1] - a[1]).slice(0, 3);
    const from = shares.map(([number, part]) => `${this.nameOfMessage(run, number)} ${Math.round(part * 100)} %`);
    return `${shown} read ${counted(reads.size, "block")}: ${ranges([...reads.keys()])}. From ${from.join(", ")}.`;
  }

  #blockWords(run) {
    const first = this.#block * run.blockTokens;
    const last = Math.min(first + run.blockTokens, run.length) - 1;
    const of = run.messagesIn(this.#block).map((number) => this.nameOfMessage(run, number));
    const where = of.length === 0 ? "" : `, ${of.length > 3 ? `${of[0]} … ${of.at(-1)}` : of.join(", ")}`;
    const readers = run.sparseLayers ? `; read for ${counted(run.readersOf(this.#block).length, "token")} of the answer` : "";
    return `Block ${count(this.#block)}: tokens ${count(first)} to ${count(last)}, ${NAMES[run.stateOf(this.#block)]}${where}${readers}.`;
  }

  #blockAt(event) {
    const { pitch, columns } = this.#layout;
    const [column, row] = [Math.floor(event.offsetX / pitch), Math.floor(event.offsetY / pitch)];
    const block = row * columns + column;
    return column < columns && block < (this.#run?.numBlocks ?? 0) ? block : null;
  }

  #point(block) {
    if (block === this.#block) return;
    this.#block = block;
    this.onBlock(this.#run, block);
    this.#schedule();
  }

  #key(event) {
    const { columns } = this.#layout;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    const last = (this.#run?.numBlocks ?? 0) - 1;
    if (event.key in steps) this.#point(Math.min(last, Math.max(0, (this.#block ?? -1) + steps[event.key])));
    else if (event.key === "Home") this.#point(0);
    else if (event.key === "End") this.#point(last);
    else if (event.key === "Escape") this.#point(null);
    else return;
    event.preventDefault();
  }
}

/** "0, 3 to 5, 9": at most a dozen of them. */
export function ranges(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found.at(-1);
    if (last && last[1] === number - 1) last[1] = number;
    else found.push([number, number]);
  }
  const words = found.flatMap(([a, b]) => (b - a < 2 ? [...new Set([count(a), count(b)])] : [`${count(a)} to ${count(b)}`]));
  return words.length <= 12 ? words.join(", ") : `${words.slice(0, 12).join(", ")} and others`;
}
