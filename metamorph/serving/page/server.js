// What the page asks of the server. Paths are relative, so that a proxy may put a prefix before them.

const TOKEN = "metamorph.token"; // of this tab only
// A balancer sends requests of one tab to one server, which has the turns before in its cache.
const HERE = Math.random().toString(36).slice(2);

/** Something went wrong; the message says so to the user. */
export class Failure extends Error {}

/** Events of a streamed answer, until `[DONE]`. Throws `Failure`, or `AbortError` once aborted. */
export async function* chat(body, signal) {
  const stream = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", stream, signal);
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new Failure("What answered is no MetaMorph server: it sent no stream of events.");
  }
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Failure(sentence(event.error.message) || "The server failed.");
    yield event;
  }
  throw new Failure("The connection broke off before the answer was complete.");
}

/** A picture as the model sees it: its features, drawn. Data URLs. */
export async function seen(url) {
  return picture(await fetched("v1/metamorph/seen", { image_url: url }));
}

/** A picture of the model drawn again from the same features. */
export async function redraw(url, { seed, image_steps, image_guidance }) {
  const body = { image_url: url, seed, steps: image_steps, guidance: image_guidance };
  return picture(await fetched("v1/metamorph/redraw", body));
}

/** The model that answers: its name, and whether it has a decoder. */
export async function model() {
  const { data } = await fetched("v1/models");
  return { name: data[0].id, draws: data[0].metamorph?.draws !== false };
}

/** The data URL itself. Throws `Failure` where it is none of a picture. */
export function pictureUrl(url) {
  if (/^data:image\/(png|jpeg|webp|gif);base64,/.test(url)) return url;
  throw new Failure("The server sent a picture that this page does not show.");
}

const picture = ({ image }) => pictureUrl(image);

async function fetched(path, body) {
  const response = await request(path, body);
  try {
    return await response.json();
  } catch (error) {
    throw new Failure("What the server sent did not arrive whole.", { cause: error });
  }
}

/** A response whose status is good; a token is asked for where the server wants one. */
async function request(path, body, signal) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    headers["X-Conversation"] = HERE;
    if (body) headers["Content-Type"] = "application/json";
    const method = body ? "POST" : "GET";
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Failure("The server cannot be reached. Is it running, and is this device online?");
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new Failure(await inWords(response));
    const reason = token ? "The server does not accept this token." : "This server asks for a token.";
    if (!(await askForToken(reason))) throw new Failure(`${reason} Send again to enter one.`);
  }
}

let asking = null; // requests that are refused together ask once

function askForToken(reason) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("access");
    const field = dialog.querySelector("input");
    dialog.querySelector("#access-reason").textContent = reason;
    field.value = dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "save";
      if (given) sessionStorage.setItem(TOKEN, field.value.trim());
      asking = null;
      resolve(given);
    }, { once: true });
  });
  return asking;
}

async function inWords(response) {
  const { status, headers } = response;
  const said = sentence(await saidBy(response));
  const again = `Try again ${waitOf(headers.get("retry-after"))}.`;
  if (status === 413) return `That is more than the server takes. ${said || "Send fewer or smaller pictures."}`;
  if (status === 429) return `The server is busy. ${again}`;
  if (status === 503) return `The server is not ready. ${said} ${again}`;
  if (status >= 500) return `The server failed (${status}). ${said}`.trim();
  return said || `The server refused the request (${status}).`;
}

async function saidBy(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return ""; // a proxy's page: the status says enough
  }
}

/** "in 7 seconds" of what Retry-After says: seconds, a date, or nothing. */
function waitOf(after) {
  const seconds = /^\d+$/.test(after ?? "") ? Number(after) : (Date.parse(after) - Date.now()) / 1000;
  if (!(seconds > 0)) return "in a moment";
  const whole = Math.ceil(seconds);
  return whole === 1 ? "in 1 second" : `in ${whole} seconds`;
}

function sentence(message) {
  if (typeof message !== "string" || !message.trim()) return "";
  const text = message.trim();
  const begins = /^[a-z]+\s/.test(text) ? text[0].toUpperCase() : text[0]; // not the name of a field
  return `${begins}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** The data of server-sent events: lines of `data:`, an empty line after each event. */
async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) return;
    waiting += value;
    const events = waiting.split(/\r?\n\r?\n/);
    waiting = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function lost(error) {
  if (error.name === "AbortError") throw error;
  throw new Failure("The connection broke off before the answer was complete.", { cause: error });
}
