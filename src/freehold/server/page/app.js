// The page: conversations, one answer at a time, and what it was made from.

import { Refused, getJson } from "./api.js";
import { Composer } from "./composer.js";
import { announce, button, byId, el } from "./dom.js";
import { Panel, isWide } from "./panels.js";
import { Run } from "./run.js";
import { showSettings } from "./settings.js";
import { Status } from "./status.js";
import * as store from "./store.js";
import { streamChat } from "./stream.js";
import { Strip } from "./strip.js";
import { Thread } from "./thread.js";
import { TokenMap } from "./tokens.js";

const settings = store.loadSettings();
let chats = settings.keep ? store.loadChats() : [];
let chat = store.newChat();
let model = null; // its card
let blockTokens = null;
let running = null; // {controller, message}
let lastPace = null;

// --- the parts of the page ------------------------------------------------------------------------------------

const thread = new Thread({ edit, regenerate, token: pointAtToken });
const strip = new Strip(pointAtBlock, nameOfMessage);
const composer = new Composer({ send, stop: () => running?.controller.abort(), takesImages });
const status = new Status(() => model?.context_length, () => lastPace);
const panels = {
  chats: new Panel("chats", "left"),
  settings: new Panel("settings", "right"),
  status: new Panel("status", "right", (open) => status.watch(open)),
};

function takesImages() {
  return (model?.input_modalities ?? []).includes("image");
}

// --- conversations --------------------------------------------------------------------------------------------

function open(found) {
  chat = found;
  thread.show(chat);
  strip.show(lastRun());
  drawChats();
  panels.chats.giveWay();
  composer.focus();
}

function keep(changed) {
  changed.changed = Date.now();
  if (!chats.includes(changed)) chats.unshift(changed);
  chats.sort((a, b) => b.changed - a.changed);
  if (settings.keep && !store.saveChat(changed)) {
    composer.say("This browser has no more room; the conversation will be gone with this tab. Delete older ones to make some.");
  }
  drawChats();
}

function remove(gone) {
  if (running && gone.messages.includes(running.message)) running.controller.abort();
  chats = chats.filter((other) => other !== gone);
  store.dropChat(gone.id);
  if (chat === gone) open(store.newChat());
  else drawChats();
  composer.say("The conversation was deleted.", { text: "Undo", run: () => (keep(gone), open(gone)) });
}

function drawChats() {
  const items = chats.map((found) => {
    const title = found.title || "New chat";
    const select = button(title, () => open(found), { class: "chat", "aria-current": found === chat ? "true" : null, title });
    const drop = button("×", () => remove(found), { class: "remove", "aria-label": `Delete ${title}`, title: "Delete" });
    return el("li", {}, select, drop);
  });
  byId("chat-list").replaceChildren(...items);
  byId("kept-where").textContent = settings.keep ? "Kept in this browser." : "Not kept: gone with this tab.";
}

byId("new-chat").addEventListener("click", () => open(store.newChat()));

addEventListener("storage", (event) => {
  // Another tab kept or deleted something. What is newer here, or open, stays as it is.
  if (!settings.keep || event.storageArea !== localStorage) return;
  const mine = new Map(chats.map((found) => [found.id, found]));
  const isOpen = (found) => found === chat || found.messages.includes(running?.message);
  chats = store.loadChats().map((found) => {
    const own = mine.get(found.id);
    return own && (isOpen(own) || own.changed >= found.changed) ? own : found;
  });
  drawChats();
});

// --- asking ---------------------------------------------------------------------------------------------------

function send(message) {
  const sent = { role: "user", ...message };
  chat.messages.push(sent);
  chat.title ||= (message.text || message.files[0]?.name || message.images[0]?.name).slice(0, 80);
  thread.update(sent);
  answer();
}

function edit(index, text) {
  if (running) return composer.say("An answer is being written; stop it first.");
  const { files = [], images = [] } = chat.messages[index];
  if (!text.trim() && files.length + images.length === 0) return;
  chat.messages.splice(index);
  thread.show(chat);
  send({ text: text.trim(), files, images });
}

function regenerate(index) {
  if (running) return composer.say("An answer is being written; stop it first.");
  chat.messages.splice(index);
  thread.show(chat);
  answer();
}

/** Asks for an answer to the conversation as it stands. */
async function answer() {
  const asked = chat;
  const run = new Run(blockTokens);
  run.tokens = new TokenMap();
  run.hasSystem = Boolean(settings.system.trim());
  const messages = store.wireMessages(asked, settings.system);
  run.numMessages = messages.length;
  const message = { role: "assistant", text: "", reasoning: "", calls: [], state: "running", run };
  asked.messages.push(message);
  const controller = new AbortController();
  running = { controller, message };
  composer.setRunning(true);
  keep(asked);
  thread.update(message);
  strip.show(run);
  try {
    await loadModel();
    run.blockTokens ??= blockTokens;
    await streamChat({ model: model.id, messages, ...store.samplingFields(settings) }, hearing(message), controller.signal);
    message.state = "done";
  } catch (error) {
    if (!controller.signal.aborted && !(error instanceof Refused)) throw error;
    message.state = controller.signal.aborted ? "stopped" : "failed";
    message.error = controller.signal.aborted ? undefined : error.message;
    // The server may have been started anew, with another model.
    if (error.code === "model_not_found") model = null;
  } finally {
    run.ended = true;
    running = null;
    composer.setRunning(false);
    keep(asked);
    thread.update(message);
    if (asked === chat) strip.show(run);
    announce({ done: "The answer is complete.", stopped: "Stopped.", failed: message.error }[message.state] ?? "");
  }
}

/** What a stream is told to: it fills the message and its run. */
function hearing(message) {
  const { run } = message;
  let first = null;
  const changed = () => {
    thread.update(message);
    if (chat.messages.includes(message)) strip.show(run);
  };
  return {
    progress(read, total) {
      Object.assign(run, { promptRead: Math.max(read, run.promptRead), promptTokens: total });
      changed();
    },
    delta(delta, tokens) {
      run.tokens.push(tokens);
      run.generated += tokens.length;
      message.text += delta.content ?? "";
      message.reasoning += delta.reasoning_content ?? "";
      run.tokens.text("content", delta.content);
      run.tokens.text("reasoning", delta.reasoning_content);
      for (const call of delta.tool_calls ?? []) hearCall(message.calls, call);
      first ??= performance.now();
      run.seconds = (performance.now() - first) / 1000;
      changed();
    },
    ended(finish, provenance) {
      message.finish = finish;
      if (provenance) run.takeProvenance(provenance);
    },
    usage(usage) {
      run.usage = usage;
      run.promptTokens = run.promptRead = usage.prompt_tokens;
      run.generated = usage.completion_tokens;
      run.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
      if (run.seconds > 0 && run.generated > 1) lastPace = (run.generated - 1) / run.seconds;
      changed();
    },
  };
}

function hearCall(calls, { index, id, function: called }) {
  calls[index] ??= { id: "", name: "", args: "" };
  if (id) calls[index].id = id;
  if (called.name) calls[index].name = called.name;
  calls[index].args += called.arguments ?? "";
}

// --- what an answer was made from -----------------------------------------------------------------------------

function lastRun() {
  return chat.messages.findLast((message) => message.run)?.run ?? null;
}

/** The request's message number `number`, among those of the conversation; undefined for the system prompt. */
function messageOf(run, number) {
  return chat.messages[number - (run.hasSystem ? 1 : 0)];
}

function nameOfMessage(run, number) {
  if (number >= run.numMessages) return "this answer";
  const message = messageOf(run, number);
  if (run.hasSystem && number === 0) return "the system prompt";
  if (message === undefined) return `message ${number + 1}`;
  return `message ${chat.messages.indexOf(message) + 1} (${message.role === "user" ? "you" : "answer"})`;
}

function pointAtToken(message, token, text) {
  const { run } = message;
  strip.showToken(run, token, text, lastRun());
  thread.markTokens(message, token === null ? [] : [token], "current");
  if (token === null || !run.sparseLayers) return thread.markMessages(null);
  const shares = new Map();
  for (const [number, part] of run.sharesOf(token)) {
    const source = messageOf(run, number);
    if (source) shares.set(source, part);
  }
  return thread.markMessages(shares);
}

function pointAtBlock(run, block) {
  const message = chat.messages.find((found) => found.run === run);
  thread.markTokens(message, block === null ? [] : run.readersOf(block), "reader");
  const numbers = block === null ? [] : run.messagesIn(block);
  thread.markMessages(new Map(numbers.map((number) => [messageOf(run, number), 1])));
}

// --- beginning ------------------------------------------------------------------------------------------------

async function loadModel() {
  if (model !== null) return;
  const list = await getJson("v1/models");
  const { engine } = await getJson("health");
  blockTokens = engine?.block_tokens ?? null;
  model = list.data[0];
  byId("model").textContent = model.id;
  byId("model").title = `${model.context_length.toLocaleString("en")} tokens of context`;
  document.title = `${model.id} · Freehold`;
}

function settingsChanged(_, name) {
  store.saveSettings(settings);
  if (name !== "keep") return;
  if (settings.keep) for (const found of chats) store.saveChat(found);
  else store.dropChats();
  drawChats();
}

showSettings(settings, settingsChanged);
panels.chats.toggle(isWide());
open(store.newChat());
loadModel().catch((error) => composer.say(error.message));
