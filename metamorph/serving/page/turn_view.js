// One turn on the page: a question and its answer.

import { action, copy, element, say, setText } from "./elements.js";
import { PictureView, sentPicture } from "./picture_view.js";

export class TurnView {
  #views = []; // one for each part of the answer
  #body = element("div", { class: "body" });
  #error = element("p", { class: "error", role: "alert", hidden: true });
  #note = element("p", { class: "note", hidden: true });
  #copy = action("Copy", () => this.#copyText());
  #usage = element("span", { class: "usage" });
  #actions = element("div", { class: "actions" });
  #answer = element("article", { class: "answer", "aria-label": "Answer" },
    this.#body, this.#error, this.#note, this.#actions);

  /** `does` has what the last turn offers: `edit`, `again`, `undo`, and `newSettings` of a drawing. */
  constructor(turn, does) {
    this.turn = turn;
    this.newSettings = does.newSettings;
    const { text, pictures } = turn.question;
    const sent = pictures.map((url, index) => sentPicture(url, index + 1));
    this.#actions.append(
      this.#copy,
      action("Try again", does.again, { class: "link last" }),
      action("Edit question", does.edit, { class: "link last" }),
      action("Undo", does.undo, { class: "link last", title: "Remove the question and its answer" }),
      this.#usage,
    );
    const question = element("article", { class: "question", "aria-label": "Question" },
      sent.length ? element("div", { class: "pictures" }, ...sent) : null,
      text ? element("p", { class: "text" }, text) : null);
    this.node = element("section", { class: "turn" }, question, this.#answer);
  }

  update() {
    const { parts, state, error, cut, usage, text, content } = this.turn.answer;
    parts.forEach((part, index) => {
      this.#views[index] ??= this.#begin(part);
      this.#views[index](state, index === parts.length - 1);
    });
    this.node.classList.toggle("running", state === "running");
    this.#answer.setAttribute("aria-busy", String(state === "running"));
    say(this.#error, error);
    const leftOut = state !== "running" && !content;
    this.node.classList.toggle("left-out", leftOut);
    say(this.#note, notes({ state, cut, leftOut }));
    this.#copy.hidden = !text;
    this.#actions.hidden = state === "running";
    if (usage) setText(this.#usage, counted(usage));
  }

  #begin(part) {
    if ("text" in part) {
      const node = element("p", { class: "text" });
      this.#body.append(node);
      return (_, last) => say(node, last ? part.text.trimStart() : part.text.trim());
    }
    const view = new PictureView(part, this.newSettings);
    this.#body.append(view.node);
    return (state) => view.update(state);
  }

  async #copyText() {
    await copy(this.turn.answer.text.trim());
    setText(this.#copy, "Copied");
    setTimeout(() => setText(this.#copy, "Copy"), 1500);
  }
}

function notes({ state, cut, leftOut }) {
  const said = [];
  if (state === "stopped") said.push("Stopped.");
  if (cut) said.push("Cut at the limit of tokens; the settings can raise it.");
  if (leftOut) said.push("There is no answer to go on from, so later turns leave this one out.");
  return said.join(" ");
}

function counted({ prompt_tokens, completion_tokens }) {
  return `${prompt_tokens} tokens read, ${completion_tokens} made`;
}
