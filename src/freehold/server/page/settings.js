// The panel of settings: the system prompt, sampling, and what is kept.

import { button, byId, el } from "./dom.js";
import { DEFAULTS } from "./store.js";

const NUMBERS = [
  // name, label, hint, attributes
  ["temperature", "Temperature", "0 always takes the likeliest token", { min: 0, max: 100, step: "any" }],
  ["top_p", "Top p", "the likeliest tokens that reach this probability", { min: 0, max: 1, step: "any" }],
  ["top_k", "Top k", "this many of the likeliest tokens", { min: 0, step: 1 }],
  ["min_p", "Min p", "tokens at least this likely, beside the likeliest", { min: 0, max: 1, step: "any" }],
  ["repetition_penalty", "Repetition penalty", "above 1: less repetition", { min: 0, step: "any" }],
  ["presence_penalty", "Presence penalty", "−2 to 2", { min: -2, max: 2, step: "any" }],
  ["frequency_penalty", "Frequency penalty", "−2 to 2", { min: -2, max: 2, step: "any" }],
  ["max_tokens", "Most tokens of an answer", "empty: to the end of the context", { min: 1, step: 1 }],
  ["seed", "Seed", "the same seed gives the same answer", { step: 1 }],
];

const THINKING = [
  ["", "as the model does"],
  ["enabled", "always"],
  ["adaptive", "where it helps"],
  ["disabled", "never"],
];

/** Fills the panel. onChange(settings, name): something was changed. Gives a function that closes over nothing else. */
export function showSettings(settings, onChange) {
  const panel = byId("settings");
  const change = (name, value) => {
    settings[name] = value;
    onChange(settings, name);
  };
  const system = el("textarea", { id: "set-system", rows: "5", onchange: () => change("system", system.value) });
  system.value = settings.system;
  const stop = el("textarea", { id: "set-stop", rows: "2", onchange: () => change("stop", stop.value) });
  stop.value = settings.stop;
  const thinking = el("select", { id: "set-thinking", onchange: () => change("thinking", thinking.value) });
  thinking.append(...THINKING.map(([value, text]) => el("option", { value, text })));
  thinking.value = settings.thinking;
  const keep = el("input", { type: "checkbox", id: "set-keep", onchange: () => change("keep", keep.checked) });
  keep.checked = settings.keep;
  const reset = () => {
    for (const [name] of [...NUMBERS, ["stop"], ["thinking"]]) change(name, DEFAULTS[name]);
    showSettings(settings, onChange);
    byId("settings").querySelector(".reset").focus();
  };
  panel.replaceChildren(
    el("h2", { text: "Settings" }),
    field(system, "System prompt", "comes first in every conversation"),
    el("h3", { text: "Sampling" }),
    el("p", { class: "hint", text: "Fields that are empty are left to the server." }),
    el("div", { class: "fields" }, ...NUMBERS.map((entry) => numberField(settings, change, ...entry))),
    field(stop, "Stop texts", "one a line"),
    field(thinking, "Reasoning", "only some models have modes"),
    button("Reset sampling", reset, { class: "quiet reset" }),
    el("h3", { text: "Conversations" }),
    el("label", { class: "check", for: "set-keep" }, keep, "Keep conversations in this browser"),
    el("p", { class: "hint", text: "Switched off, what was kept is deleted, and a conversation ends with its tab." }),
  );
}

function field(input, label, hint) {
  input.setAttribute("aria-describedby", `${input.id}-hint`);
  const parts = [el("label", { for: input.id, text: label }), input, el("small", { id: `${input.id}-hint`, text: hint })];
  return el("div", { class: "field" }, ...parts);
}

function numberField(settings, change, name, label, hint, attributes) {
  const input = el("input", { type: "number", id: `set-${name}`, inputmode: "decimal", ...attributes });
  input.value = settings[name] ?? "";
  input.addEventListener("change", () => {
    if (input.reportValidity()) change(name, input.value === "" ? null : Number(input.value));
  });
  return field(input, label, hint);
}
