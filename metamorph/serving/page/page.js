// The conversation: what happens when the user sends, stops, edits, undoes or begins anew.

import { Answer, imagePart } from "./answer.js";
import { Composer } from "./composer.js";
import { setText } from "./elements.js";
import { chat, Failure, model } from "./server.js";
import { Settings } from "./settings.js";
import { TurnView } from "./turn_view.js";

const at = (id) => document.getElementById(id);
const settings = new Settings();
const composer = new Composer({ send });
let turns = []; // {question: {text, pictures}, answer, view}
let running = null; // the AbortController of the answer under way
let following = true; // the end of the conversation stays in sight
let draft = null; // what was in the field before the last question, which is being edited there

async function send() {
  if (running) return;
  const { question } = composer;
  if (draft) turns.pop();
  finishEditing();
  await ask(question);
}

async function ask(question) {
  const request = settings.request();
  const turn = { question, answer: new Answer(request.seed) };
  const messages = [...history(), { role: "user", content: contentOf(question) }];
  turn.view = new TurnView(turn, { edit, again, undo, newSettings });
  turns.push(turn);
  notify("");
  show();
  following = true;
  follow();
  await answer(turn, { messages, ...request });
}

async function answer(turn, body) {
  const reply = turn.answer;
  running = new AbortController();
  showRunning();
  announce("The model answers.");
  try {
    for await (const event of chat(body, running.signal)) {
      reply.take(event);
      announceProgress(event);
      update(turn);
    }
    reply.state = "complete";
  } catch (error) {
    reply.state = running.signal.aborted ? "stopped" : "failed";
    if (reply.state === "failed") {
      reply.error = error instanceof Failure ? error.message : `This page failed: ${error.message}`;
    }
  }
  running = null;
  showRunning();
  update(turn);
  announce(reply.state === "complete" ? `Answer: ${reply.text}` : `The answer ${reply.state}.`);
}

/** The turns so far as the server takes them, but for those without an answer. */
function history() {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const answered = turns.filter(({ answer }) => answer.content);
  return [...system, ...answered.flatMap(({ question, answer }) => [
    { role: "user", content: contentOf(question) },
    { role: "assistant", content: answer.content },
  ])];
}

function contentOf({ text, pictures }) {
  if (!pictures.length) return text;
  return [...pictures.map(imagePart), ...(text ? [{ type: "text", text }] : [])];
}

function stop() {
  running?.abort();
}

function edit() {
  if (running) return;
  draft ??= composer.question;
  composer.question = turns.at(-1).question;
  notify("Sending replaces the last question and its answer.", "Cancel", finishEditing);
}

function finishEditing() {
  composer.question = draft ?? { text: "", pictures: [] };
  draft = null;
  notify("");
}

function again() {
  if (draft) finishEditing();
  at("text").focus();
  const { question } = turns.pop();
  ask(question);
}

function undo() {
  replaceTurns(turns.slice(0, -1), "The last question and its answer are removed.");
}

function startAnew() {
  stop();
  replaceTurns([], "A new conversation.");
}

/** Goes on with other turns, and offers those before. */
function replaceTurns(others, words) {
  const before = turns;
  if (draft) finishEditing();
  turns = others;
  notify(words, "Bring back", () => {
    turns = before;
    notify("");
    show();
    at("text").focus();
  });
  show();
  at("text").focus(); // what had it is gone
}

function newSettings() {
  return { ...settings.request(), seed: settings.newSeed() };
}

function show() {
  at("turns").replaceChildren(...turns.map(({ view }) => view.node));
  at("welcome").hidden = turns.length > 0;
  turns.forEach(({ view }) => view.update());
}

function update(turn) {
  turn.view.update();
  follow();
}

function follow() {
  if (following && turns.length) at("scroller").scrollTop = at("scroller").scrollHeight;
}

function showRunning() {
  at("send").hidden = Boolean(running);
  at("stop").hidden = !running;
  document.body.classList.toggle("answering", Boolean(running));
}

/** One line above the field, with something to do about it. */
function notify(words, label = "", act = null) {
  const [text, button] = at("notice").children;
  text.textContent = words;
  button.textContent = label;
  button.onclick = act;
  button.hidden = !label;
  at("notice").hidden = !words;
}

/** Says something to screen readers only. */
function announce(words) {
  setText(at("progress"), words);
}

function announceProgress({ choices }) {
  const { metamorph, images } = choices?.[0]?.delta ?? {};
  if (metamorph?.event === "image_started") announce(`Picture ${metamorph.number + 1} begins.`);
  if (images?.length) announce(`Picture ${images[0].index + 1} is drawn.`);
}

at("scroller").addEventListener("scroll", ({ target }) => {
  following = target.scrollHeight - target.scrollTop - target.clientHeight < 80; // pixels
});
new ResizeObserver(follow).observe(at("scroller")); // as the field below grows
at("stop").addEventListener("click", () => {
  stop();
  at("text").focus();
});
at("new").addEventListener("click", startAnew);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (running) stop();
    else if (draft) finishEditing();
  } else if (event.key === "ArrowUp" && event.target === at("text") && composer.empty && turns.length) {
    event.preventDefault();
    edit();
  }
});
model().then(({ name, draws }) => {
  setText(at("model"), name);
  document.body.classList.toggle("without-decoder", !draws);
}).catch(({ message }) => composer.complain(message));
