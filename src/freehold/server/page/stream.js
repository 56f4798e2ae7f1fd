// One answer as it streams: from the request's body to a few calls that say what has come.

import { Refused, ask, getJson } from "./api.js";

const POLL_MS = 400;
const PROGRESS = /(\d+) of (\d+) prompt tokens read/;

/**
 * Asks for an answer and tells `hear` of it until it ends. Throws Refused when the server refuses it or breaks off,
 * and an AbortError when `signal` says so.
 *
 * hear: began(requestId); progress(read, total, generated) while the prompt is read; delta(delta, tokens), tokens being
 *     the log-probability entries that came with it; ended(finishReason, provenance); usage(usage). All optional.
 */
export async function streamChat(request, hear, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true }, provenance: true, logprobs: true };
  const response = await ask("v1/chat/completions", { method: "POST", body, signal });
  const requestId = response.headers.get("x-request-id");
  hear.began?.(requestId);
  const reading = new AbortController();
  poll(requestId, hear, reading.signal);
  try {
    for await (const event of events(response.body)) {
      if (event.comment !== undefined) {
        const found = PROGRESS.exec(event.comment);
        if (found && !reading.signal.aborted) hear.progress?.(Number(found[1]), Number(found[2]), 0);
      } else if (event.data === "[DONE]") {
        return;
      } else if (take(JSON.parse(event.data), hear)) {
        reading.abort();
      }
    }
    throw new Refused(0, "The connection ended before the answer did.");
  } catch (error) {
    if (signal?.aborted || error instanceof Refused) throw error;
    throw new Refused(0, "The connection to the server broke off.");
  } finally {
    reading.abort();
  }
}

/** Hands one chunk on; whether it holds anything of the answer, so that the prompt is read. */
function take(chunk, hear) {
  if (chunk.error) throw new Refused(chunk.error.status ?? 500, chunk.error.message, chunk.error.code);
  if (chunk.usage) hear.usage?.(chunk.usage);
  let begun = false;
  for (const choice of chunk.choices) {
    const tokens = choice.logprobs?.content ?? [];
    const { role, ...delta } = choice.delta;
    if (role === undefined) {
      begun = true;
      hear.delta?.(delta, tokens);
    }
    if (choice.finish_reason) hear.ended?.(choice.finish_reason, choice.provenance ?? null);
  }
  return begun;
}

/** The request's line on the server's board, once at least, and again only while the prompt is read. Never fails. */
async function poll(requestId, hear, signal) {
  while (!signal.aborted) {
    let entry;
    try {
      const list = await getJson("v1/requests");
      entry = list.data.find((found) => found.id === requestId);
    } catch {
      // Not every key may see the board; comments in the stream tell the same, less often.
      return;
    }
    if (entry === undefined) return;
    const [choice] = entry.choices;
    hear.progress?.(choice.prompt_tokens_read, choice.prompt_tokens, choice.generated_tokens);
    if (choice.state !== "waiting" && choice.state !== "reading") return;
    await pause(POLL_MS, signal);
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Server-sent events: {data} or {comment}. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const text of whole) {
      if (text.startsWith(":")) yield { comment: text.slice(1).trim() };
      else yield { data: text.split("\n").map((line) => line.replace(/^data: ?/, "")).join("\n") };
    }
  }
}
