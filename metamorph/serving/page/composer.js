// What the user is about to send: text and pictures, chosen, pasted or dropped.

import { action, element, say } from "./elements.js";

// Larger pictures are made smaller: the model sees a few hundred pixels a side.
const MOST_BYTES = 2 ** 20;
const MOST_PIXELS = 2 ** 24;
const SMALLER_SIDE = 1024; // pixels, the longest
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp", "image/gif"];

export class Composer {
  #form = document.getElementById("composer");
  #text = document.getElementById("text");
  #files = document.getElementById("files");
  #thumbnails = document.getElementById("thumbnails");
  #problem = document.getElementById("problem");
  #pictures = []; // data URLs

  constructor({ send }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#text.value.trim() || this.#pictures.length) send();
    });
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#text.addEventListener("input", () => this.#grow());
    document.getElementById("attach").addEventListener("click", () => this.#files.click());
    this.#files.addEventListener("change", async () => {
      await this.add(this.#files.files);
      this.#files.value = "";
    });
    document.addEventListener("paste", ({ clipboardData }) => {
      // Programs for documents add a picture of the text that they copy.
      if (!clipboardData.types.includes("text/plain")) this.add(clipboardData.files);
    });
    this.#acceptDrops(document.getElementById("drop"));
  }

  get question() {
    return { text: this.#text.value.trim(), pictures: [...this.#pictures] };
  }

  set question({ text, pictures }) {
    this.#text.value = text;
    this.#pictures = [...pictures];
    this.complain("");
    this.#show();
    this.#grow();
    this.#text.focus();
  }

  get empty() {
    return !this.#text.value && !this.#pictures.length;
  }

  /** Says what is wrong above the field. */
  complain(words) {
    say(this.#problem, words);
  }

  async add(files) {
    if (!files.length) return;
    const unreadable = [];
    for (const file of files) {
      try {
        this.#pictures.push(await dataUrl(file));
      } catch {
        unreadable.push(file.name || "what was pasted");
      }
    }
    this.complain(unreadable.length ? `No picture that this browser can read: ${unreadable.join(", ")}.` : "");
    this.#show();
    this.#text.focus();
  }

  #show() {
    this.#thumbnails.hidden = !this.#pictures.length;
    this.#thumbnails.replaceChildren(...this.#pictures.map((url, index) => {
      const name = `picture ${index + 1}`;
      const remove = action("×", () => this.#remove(index), { class: "remove", "aria-label": `Remove ${name}` });
      return element("li", {}, element("img", { src: url, alt: `To send: ${name}` }), remove);
    }));
  }

  #remove(index) {
    this.#pictures.splice(index, 1);
    this.#show();
    this.#text.focus();
  }

  #grow() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight}px`;
  }

  #acceptDrops(overlay) {
    const over = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!over(event)) return;
      event.preventDefault();
      overlay.hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) overlay.hidden = true; // it left the window
    });
    document.addEventListener("drop", (event) => {
      overlay.hidden = true;
      if (!over(event)) return;
      event.preventDefault();
      this.add(event.dataTransfer.files);
    });
  }
}

/** A file as a data URL; large ones and other formats are made smaller. Rejects if it is no picture. */
async function dataUrl(file) {
  const bitmap = await createImageBitmap(file); // it also turns photographs upright
  const small = file.size <= MOST_BYTES && bitmap.width * bitmap.height <= MOST_PIXELS;
  if (small && SENT_AS_THEY_ARE.includes(file.type)) return asItIs(file);
  const scale = Math.min(1, SMALLER_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server shows what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function asItIs(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
