"use strict";
// Asks the server and reads its answer as it comes.

const SILENCE_MS = 60000;    // the server sends a comment every 15 s: after this long, it is gone

// What went wrong, in words for the reader. `wait`: seconds until asking again makes sense, null where unknown.
class Trouble extends Error {
  constructor(words, { status = 0, code = null, wait = null } = {}) {
    super(words);
    Object.assign(this, { status, code, wait });
  }
}

async function refusal(response, key) {
  let error = {};
  try { error = (await response.json()).error ?? {}; } catch { /* a body that is not the server's own: the status says it */ }
  const wait = Number(response.headers.get("Retry-After") ?? NaN);
  const words = {
    401: key ? "This server does not know this API key." : "This server wants an API key.",
    503: "The server has no room right now.",
    504: "The server took too long and gave up.",
  }[response.status] ?? error.message ?? `The server answered with status ${response.status}.`;
  return new Trouble(words, { status: response.status, code: error.code, wait: Number.isFinite(wait) ? wait : null });
}

async function request(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer. Is it running?");
  }
  if (!response.ok) throw await refusal(response, key);
  return response;
}

// The data of each server-sent event. Bytes may be cut anywhere: inside a line, a line end or a character.
async function* events(response, signal) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", data = [];
  try {
    for (;;) {
      const { value, done } = await withinSilence(reader, signal);
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});    // the server stops computing what nobody reads; a broken stream cannot be cancelled
  }
}

async function withinSilence(reader, signal) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Trouble("The server has fallen silent. What had come is kept.")), SILENCE_MS);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } catch (error) {
    if (signal.aborted || error instanceof Trouble) throw error;
    throw new Trouble("The connection was lost. What had come is kept.");
  } finally {
    clearTimeout(timer);
  }
}

// The chunks of one answer, as objects, until the server says that it is done.
async function* ask(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST", signal, body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
  });
  for await (const data of events(response, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Trouble(chunk.error.message, { code: chunk.error.code });
    yield chunk;
  }
  throw new Trouble("The connection was lost. What had come is kept.");
}
