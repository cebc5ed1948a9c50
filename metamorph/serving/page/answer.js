// One answer as it grows: text and pictures in the order in which the model made them.

import { pictureUrl } from "./server.js";

export class Answer {
  parts = []; // {text} or a picture: {number, tokens, done, step, steps, preview, drawings, shown}
  state = "running"; // then "complete", "stopped" or "failed"
  error = ""; // a sentence for the user
  cut = false; // at the limit of tokens
  usage = null;

  constructor(seed) {
    this.seed = seed;
  }

  /** Takes one event of the stream. */
  take({ choices, usage }) {
    if (usage) this.usage = usage;
    const [choice] = choices ?? [];
    if (!choice) return;
    const { content, metamorph, images = [] } = choice.delta ?? {};
    if (content) this.#write(content);
    if (metamorph) this.#progress(metamorph);
    for (const image of images) {
      const drawn = { url: pictureUrl(image.image_url.url), seed: this.seed };
      this.#picture(image.index ?? this.pictures.length).drawings.push(drawn);
    }
    if (choice.finish_reason === "length") this.cut = true;
  }

  get text() {
    return this.parts.map((part) => part.text ?? "").join("");
  }

  get pictures() {
    return this.parts.filter((part) => part.drawings);
  }

  /** What the next request says of it; "" where there is nothing. Pictures go back as they came:
   * their files carry the features that the model predicted. */
  get content() {
    const parts = this.parts.flatMap((part) => {
      if (part.text) return [{ type: "text", text: part.text }];
      return part.drawings?.length ? [imagePart(part.drawings[part.shown].url)] : [];
    });
    if (parts.some((part) => part.type === "image_url")) return parts;
    return this.text.trim() && this.text;
  }

  #write(text) {
    const last = this.parts.at(-1);
    if (last && "text" in last) last.text += text;
    else this.parts.push({ text });
  }

  #progress({ event, number, ...news }) {
    const picture = this.#picture(number);
    if (event === "image_started" || event === "image_progress") Object.assign(picture, news);
    if (event === "drawing") {
      const preview = news.preview ? pictureUrl(news.preview) : picture.preview;
      Object.assign(picture, { step: news.step, steps: news.steps, preview });
    }
  }

  /** The picture of that number; where it is new its place is here. */
  #picture(number) {
    const known = this.pictures.find((picture) => picture.number === number);
    if (known) return known;
    const nothing = { tokens: 0, done: 0, step: 0, steps: 0, preview: "", drawings: [], shown: 0 };
    this.parts.push({ number, ...nothing });
    return this.parts.at(-1);
  }
}

export function imagePart(url) {
  return { type: "image_url", image_url: { url } };
}
