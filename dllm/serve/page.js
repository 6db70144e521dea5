"use strict";
// The conversation, its settings, and the model that answers.

const byId = id => document.getElementById(id);
const [form, question, send, stop, settings] = ["composer", "question", "send", "stop", "settings"].map(byId);
const NUMBERS = ["seed", "steps", "temperature", "max_tokens"];
let model = null, turns = [], known = [];    // known: the turns whose text goes into the next prompt

const running = () => turns.find(turn => turn.running);
const number = id => byId(id).value === "" ? undefined : Number(byId(id).value);

async function introduce() {
  const shown = byId("model");
  try {
    const { data: [first] } = await (await request("v1/models", byId("key").value)).json();
    model = first.id;
    shown.textContent = [first.id, first.dllm?.sampler].filter(Boolean).join(" · ");
    for (const [name, value] of Object.entries(first.dllm?.defaults ?? {}))
      if (NUMBERS.includes(name) && value !== null) byId(name).placeholder = value;
  } catch (error) {
    shown.textContent = error instanceof Trouble ? error.message : "This server does not list its model.";
    if (error.status === 401) settings.open = true;
  }
}

function bodies(text) {
  const said = known.flatMap(turn => turn.messages);
  const values = Object.fromEntries(NUMBERS.map(id => [id, number(id)]));
  const body = {
    model: model ?? undefined, messages: [...said, { role: "user", content: text }], ...values,
    stream: true, stream_options: { include_usage: true }, denoise: true,
  };
  const name = (seed, letter) => seed === undefined ? `Answer ${letter}`.trim() : `Seed ${seed}`;
  if (!byId("compare").checked) return { [name(body.seed, "")]: body };
  const other = { ...body, seed: number("seed2") };
  return { [name(body.seed, "A")]: body, [name(other.seed, "B")]: other };
}

function submit() {
  const wrong = [...form.elements].find(field => field.willValidate && !field.checkValidity());
  if (wrong) {
    settings.open = true;
    wrong.reportValidity();
    return;
  }
  const text = question.value.trim(), last = turns.at(-1);
  if (running() || !text && !last?.wantsKey) return question.focus();
  if (!text) return last.retry();
  const turn = new Turn(text, bodies(text), { key: () => byId("key").value, changed, forget });
  turns.push(turn);
  known.push(turn);
  byId("turns").append(turn.root);
  byId("welcome").hidden = true;
  byId("fresh").hidden = false;
  question.value = "";
  question.focus({ preventScroll: true });
  turn.start();
  if (turns.length > 1) turn.root.scrollIntoView({ behavior: lessMotion.matches ? "auto" : "smooth" });
}

function changed(turn) {
  const busy = Boolean(running());
  if (!busy && document.activeElement === stop) question.focus({ preventScroll: true });
  [send.hidden, stop.hidden] = [busy, !busy];
  if (!busy && turn.wantsKey) {
    settings.open = true;
    byId("key").focus();
  }
}

function forget(turn) {
  known = known.slice(known.indexOf(turn));
  for (const lane of turn.lanes) lane.body.messages = lane.body.messages.slice(-1);
  turn.retry();
}

function anew() {
  running()?.stop();
  turns = [];
  known = [];
  byId("turns").replaceChildren();
  byId("welcome").hidden = false;
  byId("fresh").hidden = true;
  question.focus();
}

function tell() {
  const same = byId("compare").checked && number("seed") !== undefined && number("seed") === number("seed2");
  byId("seed2").setCustomValidity(same ? "The second seed must differ from the first." : "");
  const seeds = [number("seed"), ...byId("compare").checked ? [number("seed2")] : []].map(seed => seed ?? "drawn");
  const set = NUMBERS.slice(1).filter(id => number(id) !== undefined);
  const words = [`seed ${[...new Set(seeds)].join(" and ")}`, ...set.map(id => `${id.replace("_", " ")} ${number(id)}`)];
  byId("chosen").textContent = `: ${words.join(", ")}`;
  byId("second").hidden = !byId("compare").checked;
}

form.addEventListener("submit", event => { event.preventDefault(); submit(); });
form.addEventListener("input", tell);
stop.addEventListener("click", () => running()?.stop());
byId("fresh").addEventListener("click", anew);
byId("key").addEventListener("change", introduce);
question.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", event => { if (event.key === "Escape") running()?.stop(); });
tell();
introduce();
