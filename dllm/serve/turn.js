"use strict";
// A question and its answers. An answer is a lane; two lanes stand side by side under one slider.

const parts = (root, ...names) => names.map(name => root.querySelector(`.${name}`));
const BROKEN = {             // answers that did not come to their end, by the reason that the server gives
  abort: "The server is going down and has broken off this answer.",
  error: "The model failed in this answer.",
};
const copyOf = id => document.getElementById(id).content.firstElementChild.cloneNode(true);

class Lane {
  film = new Film();
  text = "";                 // what the server has committed
  state = "new";             // then running; then complete, stopped or failed
  trouble = null;
  #report = {};              // what the server says about the answer at its end
  #unsaid = "";

  constructor(turn, name, body) {
    Object.assign(this, { turn, body, root: copyOf("lane") });
    [this.name, this.stage, this.said, this.words, this.foot, this.facts, this.pick, this.closer, this.save, this.close,
      this.which, this.token, this.fault, this.remedies] = parts(this.root, "name", "stage", "said", "words", "foot",
      "facts", "continue", "closer", "save", "close", "which", "token", "fault", "remedies");
    this.name.textContent = name;
    this.which.ariaLabel = `Token of ${name}`;
    this.stage.addEventListener("pointerover", event => {
      if (event.target !== this.stage) this.words.textContent = event.target.title;
    });
    this.stage.addEventListener("pointerleave", () => this.sum());
    this.which.addEventListener("input", () => this.look());
    this.closer.addEventListener("click", () => {
      this.close.hidden = !this.close.hidden;
      this.closer.ariaExpanded = String(!this.close.hidden);
      this.look();
    });
    this.pick.addEventListener("click", () => turn.choose(this));
    this.save.addEventListener("click", () => {
      const page = replayPage(turn.question, this.text, this.film.scenes());
      download(`dllm-replay-seed-${this.#report.seed ?? "unknown"}.html`, page, "text/html");
    });
  }

  async start() {
    Object.assign(this, { film: new Film(), text: "", state: "running", trouble: null });
    this.#report = {};
    this.#unsaid = "";
    for (const shown of [this.stage, this.said, this.words, this.fault, this.remedies]) shown.replaceChildren();
    this.foot.hidden = this.close.hidden = true;
    this.closer.ariaExpanded = "false";
    this.words.textContent = "waiting";
    try {
      for await (const chunk of ask(this.body, this.turn.key(), this.turn.stopping.signal)) this.take(chunk);
      const broken = BROKEN[this.#report.finish_reason];
      if (broken) throw new Trouble(broken);
      this.state = "complete";
    } catch (error) {
      if (error.name === "AbortError" || this.turn.stopping.signal.aborted) this.state = "stopped";
      else this.fail(error instanceof Trouble ? error : new Trouble(`This page could not read the answer: ${error.message}`));
    }
    this.speak(true);
    if (this.film.empty) this.sum();
    this.settle();
  }

  take(chunk) {
    if (chunk.usage) this.#report.tokens = chunk.usage.completion_tokens;
    if (chunk.type === "diffusion_frame") {
      this.film.add(chunk);
      this.turn.grew(this);
    }
    for (const { delta, finish_reason } of chunk.choices) {
      this.text += delta.content ?? "";
      this.#unsaid += delta.content ?? "";
      if (finish_reason) Object.assign(this.#report, chunk.dllm, { finish_reason });
    }
    this.speak(false);
    if (this.film.empty && this.text) {
      this.stage.textContent = this.text;
      this.sum();
    }
  }

  // Whole sentences, and the rest at the end: single words one by one would be a stutter.
  speak(all) {
    const ready = all ? this.#unsaid : this.#unsaid.match(/^[^]*[.!?\n](?=\s)/)?.[0] ?? "";
    if (!ready) return;
    this.said.append(ready);
    this.#unsaid = this.#unsaid.slice(ready.length);
  }

  fail(trouble) {
    Object.assign(this, { state: "failed", trouble });
    const wait = trouble.wait === null ? "" : ` It asks to wait ${trouble.wait} s.`;
    this.fault.textContent = trouble.message + wait;
    const again = remedy("Try again", () => this.turn.retry([this]));
    this.remedies.append(again);
    countDown(again, trouble.wait ?? 0);
    if (trouble.code === "context_length_exceeded" && this.body.messages.length > 1)
      this.remedies.append(remedy("Ask without the earlier questions", () => this.turn.forget()));
  }

  settle() {
    const { seed, tokens, forwards, computed_seconds, queued_seconds, finish_reason } = this.#report;
    const facts = [
      seed === undefined ? "" : `seed ${seed}`,
      tokens === undefined ? "" : `${tokens} tokens`,
      forwards === undefined ? "" : `${forwards} forward passes`,
      computed_seconds === undefined ? "" : `${computed_seconds.toFixed(2)} s`,
      queued_seconds > 0.1 ? `${queued_seconds.toFixed(1)} s in the queue` : "",
      finish_reason === "length" ? "cut off at max tokens" : "",
      this.state === "stopped" ? "stopped" : "",
    ];
    if (seed !== undefined) this.name.textContent = this.name.textContent.replace(/^Answer.*/, `Seed ${seed}`);
    this.facts.textContent = facts.filter(Boolean).join(" · ");
    this.save.hidden = this.closer.hidden = this.film.empty;
    this.foot.hidden = this.film.empty && !this.facts.textContent;
    this.turn.settled();
  }

  show(step) {
    if (this.film.empty) return;
    this.scene = this.film.at(step);
    draw(this.stage, this.scene, RANK);
    this.which.max = this.scene.pieces.length;
    this.sum();
    this.look();
  }

  sum() { this.words.textContent = this.film.empty ? "" : summary(this.scene); }

  look() {
    this.stage.querySelector(".looked-at")?.classList.remove("looked-at");
    if (this.close.hidden || this.film.empty) return;
    const i = Number(this.which.value) - 1;
    this.token.value = describe(this.scene, i, RANK);
    this.which.ariaValueText = this.token.value;
    this.stage.children[i]?.classList.add("looked-at");
  }
}

function remedy(words, act) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: words });
  button.addEventListener("click", act);
  return button;
}

function countDown(button, seconds) {
  button.textContent = seconds > 0 ? `Try again (in ${seconds} s)` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(button, Math.ceil(seconds) - 1), 1000);
}

class Turn {
  // bodies: of one request per lane, by the lane's name; key: gives the key of the moment; changed: called as lanes settle
  constructor(question, bodies, { key, changed, forget }) {
    Object.assign(this, { question, key, changed, root: copyOf("turn") });
    this.forget = () => { this.forgotten.hidden = false; forget(this); };
    const [heading, lanes, controls, play, slider, step, forgotten] = parts(this.root, "question", "lanes", "controls",
      "play", "slider", "step", "forgotten");
    Object.assign(this, { controls, forgotten });
    heading.textContent = question;
    this.lanes = Object.entries(bodies).map(([name, body]) => new Lane(this, name, body));
    lanes.append(...this.lanes.map(lane => lane.root));
    lanes.classList.toggle("two", this.lanes.length > 1);
    this.choose(this.lanes[0]);
    this.player = new Player(slider, play, at => {
      step.value = `step ${at} of ${slider.max}`;
      for (const lane of this.lanes) lane.show(at);
      slider.ariaValueText = `${step.value}: ${this.lanes.map(lane => lane.words.textContent).join("; ")}`;
      this.root.classList.toggle("settled", !this.player.open && at === this.player.last);
    });
  }

  get running() { return this.lanes.some(lane => lane.state === "running"); }
  get wantsKey() { return this.lanes.some(lane => lane.trouble?.status === 401); }

  start(lanes = this.lanes) {
    if (!this.running) this.stopping = new AbortController();
    for (const lane of lanes) lane.start();
    this.player.open = true;
    this.measure();
    this.player.go(0);
    this.player.run();
    this.changed(this);
  }

  retry(lanes = this.lanes.filter(({ state }) => state === "failed")) { this.start(lanes); }

  stop() { this.stopping.abort(); }

  measure() {
    const { player, lanes } = this;
    player.last = Math.max(0, ...lanes.map(({ film }) => film.end));
    player.slider.max = Math.max(player.last, ...lanes.map(({ film }) => player.open ? film.total : 0));
    this.controls.hidden = lanes.every(({ film }) => film.empty);
  }

  // A lane that is behind the slider shows what comes at once; else the player will.
  grew(lane) {
    this.measure();
    const { end } = lane.film;
    if (end <= this.player.at && !(lessMotion.matches && end % REDUCED_STRIDE)) lane.show(this.player.at);
  }

  settled() {
    this.player.open = this.running;
    this.measure();
    if (!this.player.running) this.player.go(this.player.at);
    for (const { pick } of this.lanes) pick.hidden = this.lanes.length === 1;
    this.changed(this);
  }

  choose(lane) {
    this.chosen = lane;
    for (const other of this.lanes) other.pick.ariaPressed = String(other === lane);
  }

  // What the model is told of this turn later: nothing, where the answer did not come to its end.
  get messages() {
    if (this.chosen.state !== "complete") return [];
    return [{ role: "user", content: this.question }, { role: "assistant", content: this.chosen.text }];
  }
}
