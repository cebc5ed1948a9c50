// Pictures: one of an answer from its first token to its drawings, and one that the user sent.

import { able, action, element, say, setText } from "./elements.js";
import { redraw, seen } from "./server.js";

/** A picture of an answer: a grid of its tokens, then previews, then its drawings to page through. */
export class PictureView {
  #cells = element("div", { class: "cells", "aria-hidden": "true" });
  #image = element("img", { hidden: true });
  #frame = element("div", { class: "frame" }, this.#cells, this.#image);
  #state = element("p", { class: "state" });
  #bar = element("div", { class: "bar", role: "progressbar", "aria-valuemin": 0 }, element("i"));
  #problem = element("p", { class: "error", role: "alert", hidden: true });
  #before = action("‹", () => this.#page(-1), { "aria-label": "Drawing before" });
  #after = action("›", () => this.#page(1), { "aria-label": "Next drawing" });
  #place = element("span", { class: "place", "aria-live": "polite" });
  #pager = element("span", { class: "pager" }, this.#before, this.#place, this.#after);
  #save = element("a", { class: "link", download: "" }, "Save");
  #again = action("Redraw", () => this.#redraw(), { title: "The same features, another seed" });
  #actions = element("div", { class: "actions", hidden: true }, this.#pager, this.#save, this.#again);

  constructor(picture, newSettings) {
    this.picture = picture;
    this.newSettings = newSettings; // for one more drawing: its seed, steps and guidance
    const caption = element("figcaption", {}, this.#bar, this.#state, this.#actions, this.#problem);
    this.node = element("figure", { class: "picture" }, this.#frame, caption);
    this.#image.addEventListener("load", () => { // until then the grid holds the place
      this.#image.hidden = false;
      this.#frame.classList.toggle("drawn", this.picture.drawings.length > 0);
    });
  }

  /** `state` is that of the answer. */
  update(state) {
    const { number, tokens, done, step, steps, preview, drawings, shown } = this.picture;
    const drawn = drawings[shown];
    this.#fill(done, tokens);
    const url = drawn?.url ?? preview;
    if (url && this.#image.src !== url) this.#image.src = url;
    this.#image.alt = drawn ? `Picture ${number + 1}, drawn by the model` : `Picture ${number + 1}, half drawn`;
    this.#actions.hidden = !drawn;

    const [at, of, words] = steps
      ? [step, steps, `drawing, step ${step} of ${steps}`]
      : [done, tokens, `${done} of ${tokens} tokens`];
    this.#bar.hidden = Boolean(drawn) || state !== "running";
    this.#bar.setAttribute("aria-label", `Picture ${number + 1}`);
    this.#bar.setAttribute("aria-valuemax", of);
    this.#bar.setAttribute("aria-valuenow", at);
    this.#bar.setAttribute("aria-valuetext", words);
    this.#bar.style.setProperty("--done", of ? at / of : 0);
    const undrawn = state === "complete" ? "predicted, but not drawn" : words;
    say(this.#state, drawn ? "" : undrawn);

    if (!drawn) return;
    this.#pager.hidden = drawings.length === 1;
    setText(this.#place, `${shown + 1} of ${drawings.length}`);
    this.#place.title = `Seed ${drawn.seed}`;
    able(this.#before, shown > 0);
    able(this.#after, shown < drawings.length - 1);
    this.#save.href = drawn.url;
    this.#save.download = `metamorph-${number + 1}-${drawn.seed}.png`;
  }

  #fill(done, tokens) {
    const cells = this.#cells;
    if (cells.childElementCount !== tokens) {
      const side = Math.ceil(Math.sqrt(tokens));
      cells.style.setProperty("--side", side);
      cells.replaceChildren(...Array.from({ length: tokens }, () => element("i")));
    }
    const from = cells.querySelectorAll(".done").length;
    for (let at = from; at < done; at += 1) cells.children[at].className = "done";
  }

  #page(by) {
    const { shown, drawings } = this.picture;
    this.picture.shown = Math.min(Math.max(shown + by, 0), drawings.length - 1);
    this.update("complete");
  }

  async #redraw() {
    if (this.#again.ariaDisabled === "true") return;
    const { drawings } = this.picture;
    const settings = this.newSettings();
    able(this.#again, false);
    setText(this.#again, "Drawing…");
    say(this.#problem, "");
    try {
      const url = await redraw(drawings[0].url, settings);
      this.picture.shown = drawings.push({ url, seed: settings.seed }) - 1;
    } catch (failure) {
      say(this.#problem, failure.message);
    }
    able(this.#again, true);
    setText(this.#again, "Redraw");
    this.update("complete");
  }
}

/** A picture of a question, and beside it, once asked for, what the model sees of it. */
export function sentPicture(url, number) {
  const image = element("img", { src: url, alt: `Picture ${number}, sent by you` });
  const frames = element("div", { class: "pair" }, image);
  const problem = element("p", { class: "error", role: "alert", hidden: true });
  let view = null;

  const show = action("What the model sees", async () => {
    if (show.ariaDisabled === "true") return;
    if (view) {
      view.hidden = !view.hidden;
    } else {
      able(show, false);
      say(problem, "");
      try {
        const alt = `What the model sees of picture ${number}`;
        view = element("img", { src: await seen(url), alt, class: "seen" });
        frames.append(view);
      } catch (failure) {
        say(problem, failure.message);
      }
      able(show, true);
    }
    show.ariaExpanded = String(Boolean(view && !view.hidden));
  }, { "aria-expanded": "false" });

  return element("figure", { class: "sent" }, frames, element("figcaption", {}, show, problem));
}
