"""A server for the tests of the page: it streams answers of known text and frames, and breaks where a test wants it to.

It speaks what `dllm serve` speaks, and what it does with a request is decided by the question alone.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dllm.serve.page import POLICY, chat_page

ANSWER = [" Six", " times", " seven", " is", " 42", ".", " Träume", " 🌊", " are", " extra", ".", "∎"]
KEY = "open sesame"
MASK = " ·"
MODEL = {"positions": 192, "sampler": "scripted", "invariant": "exact", "denoise": True}
DEFAULTS = {"max_tokens": 64, "steps": 12, "block_length": 64, "temperature": 0.0}


class Step:
    """A frame as the server sends it, and the text that it lets out."""

    def __init__(
        self, step: int, total: int, changed: dict[int, tuple[str, str, float | None]], text: str, whole: bool
    ):
        columns = sorted(changed)
        pieces, states, confidence = zip(*(changed[column] for column in columns), strict=True)
        inner = dict(pieces=list(pieces), states="".join(states), confidence=list(confidence))
        self.frame = {"type": "diffusion_frame", "block": 0, "step": step, "total": total, "text": ""}
        self.frame["dllm"] = inner if whole else {"columns": columns} | inner
        self.text = text


def steps(seed: int, pieces: list[str] = ANSWER) -> Iterator[Step]:
    """One token is committed a step, in an order that the seed draws; the next two are guesses."""
    draw = random.Random(seed)
    order = draw.sample(range(len(pieces)), len(pieces))
    shown = dict.fromkeys(range(len(pieces)), (MASK, "m", None))
    sent = 0
    for n, column in enumerate(order, start=1):
        now = {c: (piece, "c" if state == "n" else state, known) for c, (piece, state, known) in shown.items()}
        now |= {other: (pieces[other], "t", round(draw.uniform(0.1, 0.6), 4)) for other in order[n : n + 2]}
        now[column] = (pieces[column], "n", round(draw.uniform(0.4, 1.0), 4))
        changed = {c: entry for c, entry in now.items() if n == 1 or entry != shown[c]}
        shown = now
        end = next((c for c in range(len(pieces)) if shown[c][1] in "mt"), len(pieces))
        text = "".join(pieces[sent:end]).replace("∎", "")
        yield Step(n, len(pieces), changed, text if sent else text.lstrip(), whole=n == 1)
        sent = max(sent, end)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ScriptedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # every chunk leaves at once

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, chat_page().encode(), "text/html; charset=utf-8", {"Content-Security-Policy": POLICY})
        elif self.path == "/v1/models":
            if self.server.locked and not self._has_key():
                return self._refuse(401, "no key", "invalid_api_key")
            model = {"id": "tiny-model", "object": "model", "dllm": MODEL | {"defaults": DEFAULTS}}
            self._send(200, json.dumps({"object": "list", "data": [model]}).encode())
        else:
            self._refuse(404, "no such page", "not_found")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        question = body["messages"][-1]["content"]
        if self.server.locked and not self._has_key():
            return self._refuse(401, "no key", "invalid_api_key")
        if question == "full" and not self.server.room:
            self.server.room = True
            return self._refuse(503, "the queue is full", "overloaded", {"Retry-After": "2"})
        if question == "long" and len(body["messages"]) > 1:
            return self._refuse(400, "240 positions asked for, 192 there are", "context_length_exceeded")
        self._stream(question, body.get("seed", 4711), body)

    def _stream(self, question: str, seed: int, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for event in self._events(question, seed):
                self._write(event, in_pieces=question == "pieces")
        except (BrokenPipeError, ConnectionResetError):
            self.server.left.set()

    def _events(self, question: str, seed: int) -> Iterator[str]:
        head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny-model"}

        def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
            chunk = head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more
            line_end = "\r\n" if question == "pieces" else "\n"
            return f"data: {json.dumps(chunk, ensure_ascii=False)}{line_end * 2}"

        yield event({"role": "assistant", "content": ""})
        for n, step in enumerate(steps(seed), start=1):
            if question in ("hold", f"hold {seed}") and n in self.server.gates:
                while not self.server.gates[n].wait(0.02):  # until the client leaves, or the test opens it
                    yield ": ping\n\n"
            if question == "break" and n == 5:
                return
            if question == "going" and n == 5:
                yield event({}, "abort")
                yield "data: [DONE]\n\n"
                return
            if question == "fail" and n == 5:
                yield event({}, "error")
                yield 'data: {"error": {"message": "the forward pass raised", "type": "server_error"}}\n\n'
                yield "data: [DONE]\n\n"
                return
            if question != "blind":
                yield event({}, **step.frame)
            if step.text:
                yield event({"content": step.text})
        report = {"seed": seed, "forwards": len(ANSWER), "canvas": 64, "queued_seconds": 0.0, "computed_seconds": 0.25}
        yield event({}, "length" if question == "cut" else "stop", dllm=report)
        yield f"data: {json.dumps(head | {'choices': [], 'usage': {'completion_tokens': len(ANSWER)}})}\n\n"
        yield "data: [DONE]\n\n"

    def _write(self, event: str, in_pieces: bool) -> None:
        content = event.encode()
        for part in re.findall(rb"[\s\S]{1,7}", content) if in_pieces else [content]:
            self.wfile.write(part)
            self.wfile.flush()
            if in_pieces:
                time.sleep(0.0005)  # so that the pieces arrive apart

    def _has_key(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {KEY}"

    def _refuse(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self._send(status, json.dumps({"error": error}).encode(), headers=headers)

    def _send(
        self, status: int, content: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class ScriptedServer(ThreadingHTTPServer):
    """Serves on a free port of this machine in a thread of its own, as a context manager.

    bodies: of the requests so far. locked: a key is wanted. room: "full" is answered. left: a client has gone away.
    gates: before the steps at which "hold" waits, and "hold 8" where the seed is 8.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/"
        self.fresh()

    def fresh(self) -> None:
        """Forget what was."""
        self.bodies: list[dict[str, Any]] = []
        self.locked = self.room = False
        self.left, self.gates = threading.Event(), {5: threading.Event(), 9: threading.Event()}

    def open(self, *steps: int) -> None:
        """Let those who wait before these steps go on."""
        for step in steps:
            self.gates[step].set()

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open(*self.gates)
        self.shutdown()
        self.server_close()
