"use strict";
// The steps of one answer, put together from frames that list only what changed, and the replay made of them.

const STATES = { g: "given", m: "masked", t: "tentative", n: "new", c: "committed" };
const MASK_MARK = " ·";
const WHOLE_EVERY = 32;      // steps between two that are stored whole: what lies between is what changed
const RANK = "confidence";   // what it is depends on the sampler

class Film {
  steps = [];                // number of each stored step, rising
  total = 0;
  #stored = [];
  #present = { pieces: [], states: [], confidence: [] };

  // A step that the server left out is missing here, too: the one before it stays in view.
  add({ step, total, dllm: { columns, pieces, states, confidence } }) {
    const change = { columns, pieces, states: [...states].map(letter => STATES[letter]), confidence };
    if (this.empty && step > 0) this.#store(0, before(change));
    this.#store(Math.max(step, this.end + 1), change);
    this.total = Math.max(total, this.end);
  }

  #store(step, change) {
    this.#present = patched(this.#present, change);
    this.#stored.push(this.#stored.length % WHOLE_EVERY ? change : this.#present);
    this.steps.push(step);
  }

  get empty() { return this.steps.length === 0; }
  get end() { return this.steps.at(-1) ?? -1; }

  // The scene at a step, or at the last stored one before it.
  at(step) { return this.#scene(Math.max(0, this.steps.findLastIndex(stored => stored <= step))); }

  scenes() { return this.steps.map((_, index) => this.#scene(index)); }

  #scene(index) {
    const whole = index - index % WHOLE_EVERY;
    return this.#stored.slice(whole + 1, index + 1).reduce(patched, this.#stored[whole]);
  }
}

// The scene before the first step: all that was not given is masked.
function before({ pieces, states }) {
  const given = states.map(state => state === "given");
  return {
    pieces: pieces.map((piece, i) => given[i] ? piece : MASK_MARK),
    states: given.map(known => known ? "given" : "masked"),
    confidence: given.map(() => null),
  };
}

function patched(scene, { columns, ...change }) {
  if (!columns) return change;
  const whole = { pieces: [...scene.pieces], states: [...scene.states], confidence: [...scene.confidence] };
  columns.forEach((column, i) => {
    for (const list in whole) whole[list][column] = change[list][i];
  });
  return whole;
}

// A sentence about a scene, for those who do not see the shades.
function summary(scene) {
  const kept = scene.states.filter(state => state === "new" || state === "committed").length;
  const words = [`${kept} of ${scene.states.filter(state => state !== "given").length} tokens kept`];
  const guesses = scene.states.filter(state => state === "tentative").length;
  if (guesses) words.push(`${guesses} guessed`);
  const known = scene.confidence.map((value, i) => [value, i]).filter(([value]) => value !== null);
  if (known.length) {
    const [value, i] = known.reduce((least, other) => other[0] < least[0] ? other : least);
    words.push(`least sure: “${scene.pieces[i].trim()}”, ${percent(value)}`);
  }
  return words.join(" · ");
}

// The file that `dllm chat --save` writes: its template travels in this page, and what draws is this page's own.
function replayPage(question, answer, scenes) {
  const escaped = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };
  const values = {
    question: question.replace(/[&<>"']/g, sign => escaped[sign]),
    data: JSON.stringify({ rank: RANK, answer, scenes }).replaceAll("<", "\\u003c"),
    drawing_style: document.getElementById("drawing-style").textContent,
    drawing: document.getElementById("drawing").textContent,
  };
  const template = JSON.parse(document.getElementById("replay").textContent);
  return template.replace(/{{(\w+)}}/g, (_, name) => values[name]);
}

function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
