// The settings panel: fields as a request to the server names them, and the system prompt.

const KEPT = "metamorph.settings";
const PREVIEW_EVERY = 5; // denoising steps
const SEEDS = 2 ** 31;

export class Settings {
  #dialog = document.getElementById("settings");
  #form = this.#dialog.querySelector("form");
  #values = JSON.parse(localStorage.getItem(KEPT) ?? "{}"); // text of fields that are not empty

  constructor() {
    document.getElementById("settings-button").addEventListener("click", () => this.#open());
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.returnValue === "save") this.#keep(); // not where Escape closed it
    });
  }

  get system() {
    return this.#values.system ?? "";
  }

  /** The fields of one request. Without a seed of the user's each has its own. */
  request() {
    const fields = { image_previews: PREVIEW_EVERY };
    for (const [name, text] of Object.entries(this.#values)) {
      if (name !== "system") fields[name] = Number(text);
    }
    fields.seed ??= this.newSeed();
    return fields;
  }

  newSeed() {
    return Math.floor(Math.random() * SEEDS);
  }

  #open() {
    this.#form.reset();
    for (const [name, text] of Object.entries(this.#values)) this.#form.elements[name].value = text;
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
  }

  #keep() {
    const filled = [...new FormData(this.#form)].filter(([, text]) => text.trim());
    this.#values = Object.fromEntries(filled);
    localStorage.setItem(KEPT, JSON.stringify(this.#values));
  }
}
