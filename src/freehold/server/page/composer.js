// The field for a message, its files, and its buttons.

import { button, byId, el } from "./dom.js";
import { readFiles, sizeText } from "./files.js";
import { isSend } from "./thread.js";

/** on: send({text, files, images}), stop(), takesImages(). */
export class Composer {
  #field = byId("prompt");
  #files = [];
  #images = [];
  #running = false;

  constructor(on) {
    this.on = on;
    byId("composer").addEventListener("submit", (event) => (event.preventDefault(), this.#send()));
    byId("stop").addEventListener("click", () => on.stop());
    byId("attach").addEventListener("click", () => byId("picker").click());
    byId("picker").addEventListener("change", async ({ target }) => {
      const given = [...target.files];
      target.value = "";
      await this.add(given);
    });
    this.#field.addEventListener("input", () => this.#draw());
    this.#field.addEventListener("keydown", (event) => {
      if (isSend(event)) event.preventDefault(), this.#send();
    });
    this.#field.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      this.add([...event.clipboardData.files]);
    });
    this.#listenForDrops();
    this.#draw();
  }

  #listenForDrops() {
    const root = document.documentElement;
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      root.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && root.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      root.classList.remove("dropping");
      this.add([...event.dataTransfer.files]);
    });
  }

  /** Adds files to the message that is being written; says what is wrong with those it cannot take. */
  async add(given) {
    const taken = await readFiles(given, [...this.#files, ...this.#images], this.on.takesImages());
    this.#files.push(...taken.files);
    this.#images.push(...taken.images);
    this.say(taken.problems.join(" "));
    this.#draw();
    this.#field.focus();
  }

  /** Shows a notice; an empty one hides it. action: {text, run}, a button beside it. */
  say(text, action = null) {
    const notice = byId("notice");
    notice.hidden = !text;
    const act = action && button(action.text, () => (this.say(""), action.run()));
    notice.replaceChildren(text, ...(act ? [" ", act] : []));
  }

  /** Whether an answer is being made: then there is a button to stop it, and nothing can be sent. */
  setRunning(running) {
    const hadFocus = [byId("stop"), byId("send")].includes(document.activeElement);
    this.#running = running;
    byId("stop").hidden = !running;
    byId("send").hidden = running;
    if (hadFocus) byId(running ? "stop" : "prompt").focus();
    this.#draw();
  }

  /** Puts the keyboard into the field, where that does not bring one up on the screen. */
  focus() {
    if (matchMedia("(pointer: fine)").matches) this.#field.focus();
  }

  #send() {
    const text = this.#field.value.trim();
    if (this.#running || !(text || this.#files.length > 0 || this.#images.length > 0)) return;
    const message = { text, files: this.#files, images: this.#images };
    this.#files = [];
    this.#images = [];
    this.#field.value = "";
    this.say("");
    this.#draw();
    this.on.send(message);
  }

  #draw() {
    const field = this.#field;
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight + 2, 260)}px`;
    const given = [...this.#files, ...this.#images];
    byId("send").disabled = !field.value.trim() && given.length === 0;
    byId("files").hidden = given.length === 0;
    byId("files").replaceChildren(...given.map((file) => this.#fileNode(file)));
  }

  #fileNode(file) {
    const remove = () => {
      this.#files = this.#files.filter((other) => other !== file);
      this.#images = this.#images.filter((other) => other !== file);
      this.#draw();
      this.#field.focus();
    };
    const label = `Remove ${file.name}`;
    return el("li", {}, el("span", { text: file.name }), el("small", { text: sizeText(file.size) }), button("×", remove, { class: "remove", "aria-label": label, title: label }));
  }
}
