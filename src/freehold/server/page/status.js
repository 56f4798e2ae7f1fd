// The status of the server: what runs, what is cached, how fast. Asked for every two seconds, only while it is seen.

import { Refused, ask, getJson } from "./api.js";
import { announce, button, byId, count, counted, el } from "./dom.js";
import { sizeText } from "./files.js";

const EVERY_MS = 2000;

const LABELS = {
  requests_running: "running",
  requests_waiting: "waiting",
  cache_blocks: "blocks",
  cache_blocks_free: "free",
  cache_blocks_kept: "kept",
  prompt_tokens_cached: "prompt tokens found in the cache",
  tokens_computed: "tokens computed",
  tokens_restored: "tokens read from the store",
  cache_audits: "audits of the cache",
  cache_audits_failed: "audits that failed",
};

// Shown in a place of their own.
const PLACED = new Set(["requests_running", "requests_waiting", "cache_blocks", "cache_blocks_free", "cache_blocks_kept", "block_tokens"]);

/** Polls and draws while its panel is open and the tab is seen. lastPace(): tokens a second of the last answer. */
export class Status {
  #panel = byId("status");
  #body = el("div");
  #requests = el("ul", { class: "requests" });
  #timer = null;
  #round = 0;
  #before = null; // {at, tokens} of the poll before
  #wanted = false;

  constructor(contextLength, lastPace) {
    this.contextLength = contextLength;
    this.lastPace = lastPace;
    this.#panel.replaceChildren(el("h2", { text: "Status" }), el("h3", { text: "Requests" }), this.#requests, this.#body);
    document.addEventListener("visibilitychange", () => this.#go());
  }

  /** Begins or ends polling. */
  watch(wanted) {
    this.#wanted = wanted;
    this.#before = null;
    this.#go();
  }

  #go() {
    clearTimeout(this.#timer);
    this.#round += 1;
    if (this.#wanted && document.visibilityState === "visible") this.#poll();
  }

  async #poll() {
    const round = this.#round;
    const [health, list] = await Promise.allSettled([getJson("health"), getJson("v1/requests")]);
    if (this.#round !== round) return; // closed meanwhile, or opened again
    this.#drawRequests(list);
    if (health.status === "fulfilled") this.#draw(health.value);
    else this.#body.replaceChildren(el("p", { class: "notice", text: health.reason.message }));
    this.#timer = setTimeout(() => this.#poll(), EVERY_MS);
  }

  #drawRequests({ status, value, reason }) {
    if (status === "rejected") {
      this.#requests.replaceChildren(el("li", { class: "hint", text: reason.message }));
    } else if (value.data.length === 0) {
      this.#requests.replaceChildren(el("li", { class: "hint", text: "none" }));
    } else {
      const focused = document.activeElement?.dataset?.request;
      this.#requests.replaceChildren(...value.data.map(requestNode));
      // The list is made anew, the keyboard stays where it was.
      if (focused) this.#requests.querySelector(`[data-request="${CSS.escape(focused)}"]`)?.focus();
    }
  }

  #draw({ model, engine = {} }) {
    const used = (engine.cache_blocks ?? 0) - (engine.cache_blocks_free ?? 0) - (engine.cache_blocks_kept ?? 0);
    const blocks = engine.block_tokens ? `${count(engine.block_tokens)} tokens` : null;
    const context = this.contextLength();
    this.#body.replaceChildren(
      ...section("Model", [["name", model], ["context", context ? counted(context, "token") : null], ["block", blocks]]),
      ...section("Speed", [["computed now", this.#pace(engine)], ["last answer", paceText(this.lastPace())]]),
      ...(engine.cache_blocks ? [el("h3", { text: "Cache" }), cacheBar(engine, used)] : []),
      ...section("Memory", entries(engine, (name) => isBytes(name) && !name.startsWith("store"))),
      ...section("Store", entries(engine, (name) => name.startsWith("store"))),
      el("h3", { text: "Egress" }),
      el("p", { class: "egress", text: egressText(engine) }),
      ...section("Counters", entries(engine, isCounter)),
    );
  }

  #pace(engine) {
    const tokens = engine.tokens_computed;
    if (tokens === undefined) return null;
    const [at, before] = [performance.now(), this.#before];
    this.#before = { at, tokens };
    if (before === null || at <= before.at) return "…";
    return paceText(((tokens - before.tokens) * 1000) / (at - before.at));
  }
}

function isBytes(name) {
  return name.endsWith("bytes");
}

function isCounter(name) {
  return !PLACED.has(name) && !isBytes(name) && !name.startsWith("store") && !name.startsWith("egress");
}

function entries(engine, wanted) {
  return Object.entries(engine)
    .filter(([name]) => wanted(name))
    .map(([name, value]) => [labelOf(name), valueText(name, value)]);
}

function labelOf(name) {
  return LABELS[name] ?? (name.replace(/^store_/, "").replace(/_?n?bytes$/, "").replaceAll("_", " ") || "size");
}

function valueText(name, value) {
  if (typeof value !== "number") return String(value);
  if (isBytes(name)) return sizeText(value);
  return Number.isInteger(value) ? count(value) : value.toFixed(3);
}

function paceText(pace) {
  return pace === null ? null : `${pace.toFixed(1)} tokens a second`;
}

function egressText(engine) {
  const told = Object.entries(engine).filter(([name]) => name.startsWith("egress"));
  if (told.length === 0) return "not sealed";
  return told.map(([name, value]) => (name === "egress" ? String(value) : `${name.slice(7).replaceAll("_", " ")}: ${value}`)).join(", ");
}

/** A heading and a list of what is known; nothing where nothing is. */
function section(title, pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  if (known.length === 0) return [];
  const list = el("dl");
  for (const [name, value] of known) list.append(el("div", {}, el("dt", { text: name }), el("dd", { text: value })));
  return [el("h3", { text: title }), list];
}

function cacheBar(engine, used) {
  const parts = [
    ["in use", used, "written"],
    ["kept", engine.cache_blocks_kept, "cached"],
    ["free", engine.cache_blocks_free, "coming"],
  ];
  const bar = el("div", { class: "cache-bar", "aria-hidden": "true" });
  for (const [, number, state] of parts) {
    const part = el("i", { class: state });
    part.style.flexGrow = String(number);
    bar.append(part);
  }
  const words = parts.map(([name, number, state]) => el("li", { class: state }, el("i", { "aria-hidden": "true" }), `${count(number)} ${name}`));
  return el("div", {}, bar, el("ul", { class: "legend" }, ...words));
}

function requestNode({ id, client, seconds, choices }) {
  const [choice] = choices;
  const told = { waiting: "waits", reading: "reads its prompt", writing: "writes", ended: "has ended" }[choice.state];
  const reading = choice.state === "reading" || choice.state === "waiting";
  const counts = reading
    ? `${count(choice.prompt_tokens_read)} of ${counted(choice.prompt_tokens, "token")}`
    : `${counted(choice.generated_tokens, "token")} after ${count(choice.prompt_tokens)}`;
  const bar = el("progress", { max: choice.prompt_tokens, value: choice.prompt_tokens_read, "aria-label": "Prompt read" });
  const cancel = button("Cancel", () => cancelRequest(id, cancel), { "data-request": id, "aria-label": `Cancel the request of ${client}` });
  return el(
    "li",
    { "data-state": choice.state },
    el("div", {}, el("strong", { text: told }), ` ${counts}`, el("small", { text: `${client} · ${seconds.toFixed(1)} s${choices.length > 1 ? ` · ${choices.length} answers` : ""}` })),
    reading ? bar : null,
    cancel,
  );
}

async function cancelRequest(id, control) {
  control.disabled = true;
  try {
    await ask(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
    announce("Cancelled");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    announce(error.message);
  }
}
