"use strict";
// Draws the tokens of one step and moves from step to step. A scene is one step: the lists `pieces` (text), `states`
// and `confidence` (0 to 1, null where nothing was proposed), with one entry per token.

const FRAME_MS = 120;        // between two steps that are played
const LIVE_MS = 40;          // between two steps while more arrive
const LIVE_LAG = 24;         // ticks in which a view that is behind closes about two thirds of the gap
const REDUCED_STRIDE = 8;    // where motion is unwelcome, every eighth step is shown
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
const END_MARK = "∎";

const percent = confidence => confidence < 0.001 ? "under 0.1 %" : `${(100 * confidence).toFixed(1)} %`;

function describe(scene, i, rank) {
  const known = scene.confidence[i] === null ? "" : `, ${rank} ${percent(scene.confidence[i])}`;
  return `token ${i + 1}: ${JSON.stringify(scene.pieces[i])}, ${scene.states[i]}${known}`;
}

// A token is a span after a text node with the space before it, which is not shaded. They are kept from step to step,
// so that only what changes is drawn again.
function draw(stage, scene, rank) {
  if (stage.childElementCount !== scene.pieces.length)
    stage.replaceChildren(...scene.pieces.flatMap(() => [new Text(), document.createElement("span")]));
  let token = stage.firstElementChild;
  scene.pieces.forEach((piece, i) => {
    const confidence = scene.confidence[i], words = describe(scene, i, rank);
    if (token.title !== words || token.dataset.confidence !== String(confidence)) {
      const space = piece.startsWith(" ") && piece !== " " ? " " : "";
      token.previousSibling.data = i === 0 ? "" : space;
      token.textContent = piece.slice(space.length);
      token.className = scene.states[i];
      token.classList.toggle("end", piece === END_MARK);
      token.title = words;
      token.dataset.confidence = confidence;
      token.style.setProperty("--confidence", scene.states[i] === "masked" ? 0 : confidence ?? 0);
    }
    token = token.nextElementSibling;
  });
}

// Steps 0 to `last` under a slider and a play button; `show(step)` draws one. While `open`, more steps may come:
// a player that runs then waits at the last one, and hurries where it has fallen behind.
class Player {
  open = false;
  hurried = false;
  last = 0;
  #timer = null;

  constructor(slider, play, show) {
    Object.assign(this, { slider, play, show });
    play.addEventListener("click", () => this.toggle());
    slider.addEventListener("input", () => { this.pause(); this.go(this.at); });
  }

  get at() { return Number(this.slider.value); }
  get running() { return this.#timer !== null; }

  go(step) {
    this.slider.value = Math.min(this.last, Math.max(0, step));
    this.show(this.at);
  }

  pause() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.hurried = false;
    this.play.textContent = "Play";
  }

  run() {
    if (this.open) this.hurried = true;
    else if (this.at === this.last) this.go(0);
    this.play.textContent = "Pause";
    this.#wait();
  }

  toggle() { this.running ? this.pause() : this.run(); }

  #wait() {
    clearTimeout(this.#timer);
    const stride = lessMotion.matches ? REDUCED_STRIDE : 1;
    this.#timer = setTimeout(() => this.#tick(), this.hurried ? LIVE_MS : FRAME_MS * stride);
  }

  #tick() {
    const next = this.#next();
    if (next > this.at) this.go(next);
    if (this.at < this.last || this.open) return this.#wait();
    this.pause();
    this.show(this.at);
  }

  #next() {
    if (!lessMotion.matches) return this.at + (this.hurried ? Math.ceil((this.last - this.at) / LIVE_LAG) : 1);
    const stop = this.hurried ? this.last : this.at + REDUCED_STRIDE;
    const next = stop - stop % REDUCED_STRIDE;
    return next > this.at && next <= this.last ? next : this.open ? this.at : this.last;
  }
}
