// Requests to this server, and to nothing else. Paths are relative, so that a proxy may put the server under a prefix.

import { byId } from "./dom.js";

const KEY = "freehold.key";

/** What the server said no to. `status` is 0 when it could not be reached. */
export class Refused extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let asking = null;

/**
 * A fetch with the key, if there is one. A 401 asks for the key once and tries again. Throws Refused for every answer
 * but a 2xx, and an AbortError when `signal` says so.
 */
export async function ask(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(path, method, body, key, signal);
    if (response.ok) return response;
    const refused = await refusal(response);
    if (response.status !== 401) throw refused;
    // Another request may have been given a new key meanwhile.
    if (sessionStorage.getItem(KEY) === key) await askForKey(key === null ? "" : refused.message);
    signal?.throwIfAborted();
  }
}

/** The JSON of a GET. */
export async function getJson(path) {
  return (await ask(path)).json();
}

async function send(path, method, body, key, signal) {
  // Without "omit" the browser would add what it was given to open the page, which no API route takes.
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const options = { method, headers, body: body && JSON.stringify(body), signal, credentials: "omit" };
    return await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, "The server cannot be reached. Is it running?");
  }
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new Refused(response.status, error.message, error.code);
  } catch {
    return new Refused(response.status, `The server answered ${response.status} ${response.statusText}`.trim());
  }
}

/** Opens the dialog, one for all who wait; ends when a key was given. */
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const field = byId("key");
    if (problem) byId("key-why").textContent = problem;
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener(
      "close",
      () => {
        sessionStorage.setItem(KEY, field.value.trim());
        field.value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
    field.focus();
  });
  return asking;
}
