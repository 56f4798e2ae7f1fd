// Conversations and settings, kept in this browser and nowhere else. Each conversation has an entry of its own, so that
// two tabs do not overwrite each other's.

const CHAT = "freehold.chat.";
const SETTINGS = "freehold.settings";

/** What settings are where nothing was chosen; null leaves a field to the server. */
export const DEFAULTS = Object.freeze({
  keep: true,
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  repetition_penalty: null,
  presence_penalty: null,
  frequency_penalty: null,
  max_tokens: null,
  seed: null,
  stop: "",
  thinking: "",
});

/** The settings that were kept. */
export function loadSettings() {
  const kept = parsed(localStorage.getItem(SETTINGS));
  const known = Object.entries(kept ?? {}).filter(([name]) => name in DEFAULTS);
  return { ...DEFAULTS, ...Object.fromEntries(known) };
}

/** Keeps the settings. */
export function saveSettings(settings) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

/** A conversation without messages. */
export function newChat() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", changed: Date.now(), messages: [] };
}

/** All kept conversations, the newest first. Entries that are none are skipped. */
export function loadChats() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(CHAT));
  const found = names.map((name) => parsed(localStorage.getItem(name)));
  const chats = found.filter((chat) => chat && typeof chat.id === "string" && Array.isArray(chat.messages));
  for (const { messages } of chats) for (const message of messages) if (message.state === "running") message.state = "stopped";
  return chats.sort((a, b) => b.changed - a.changed);
}

/** Keeps a conversation; false where the browser has no room for it. Pictures and what was read stay out. */
export function saveChat(chat) {
  const messages = chat.messages.map(({ run, images, ...message }) => message);
  try {
    localStorage.setItem(CHAT + chat.id, JSON.stringify({ ...chat, messages }));
    return true;
  } catch {
    return false;
  }
}

/** Forgets a conversation. */
export function dropChat(id) {
  localStorage.removeItem(CHAT + id);
}

/** Forgets all conversations. */
export function dropChats() {
  for (const name of Object.keys(localStorage)) if (name.startsWith(CHAT)) localStorage.removeItem(name);
}

function parsed(text) {
  try {
    return text === null ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

/** The messages of a conversation as the API takes them. */
export function wireMessages(chat, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of chat.messages) messages.push(message.role === "user" ? userMessage(message) : answer(message));
  return messages;
}

function userMessage({ text, files = [], images = [] }) {
  const content = [text, ...files.map(fencedFile)].filter(Boolean).join("\n\n");
  if (images.length === 0) return { role: "user", content };
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...parts, { type: "text", text: content }] };
}

function answer({ text, reasoning, calls = [] }) {
  const message = { role: "assistant", content: text };
  if (reasoning) message.reasoning_content = reasoning;
  const whole = calls.filter((call) => call.id && call.name);
  if (whole.length > 0) {
    message.tool_calls = whole.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } }));
    if (!text) message.content = null;
  }
  return message;
}

/** A file as a fenced part of a message, behind a fence that is longer than any in it. */
export function fencedFile({ name, text }) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((ticks) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `File ${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

/** The settings as fields of a request; those that were not set are left out. */
export function samplingFields(settings) {
  const fields = {};
  const names = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"];
  for (const name of [...names, "max_tokens", "seed"]) if (settings[name] !== null) fields[name] = settings[name];
  const stops = settings.stop.split("\n").filter(Boolean);
  if (stops.length > 0) fields.stop = stops;
  if (settings.thinking) fields.thinking = { type: settings.thinking };
  return fields;
}
