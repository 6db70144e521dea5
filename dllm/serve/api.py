"""The routes of the server, and the errors that they answer with."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dllm.serve.bodies import ChatBody, CompletionBody, TokenizeBody, parse
from dllm.serve.engine import Engine
from dllm.serve.errors import ApiError
from dllm.serve.guard import Guard, too_large
from dllm.serve.metrics import Metrics
from dllm.serve.orders import check_model
from dllm.serve.page import POLICY, chat_page
from dllm.serve.prompts import chat_tokens, text_tokens
from dllm.serve.serving import Left, Serving
from dllm.serve.settings import Settings

SILENCE = 60.0  # seconds without a step after which the engine is taken for dead, unless requests may take longer

_log = logging.getLogger("dllm.serve")


def create_app(engine: Engine, settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application. Its engine's thread runs while the application's lifespan lasts.

    Args:
        engine: what is served.
        settings: limits, keys and hosts.

    Returns:
        The application; `app.state.serving` has the batcher and the metrics.

    Example:
        >>> from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
        >>> from dllm.demo.shipped import load_shipped
        >>> engine = Engine(MDLMSampler(*load_shipped()), MDLMSamplerConfig(), name="shipped")
        >>> app = create_app(engine, Settings(rows=4))
        >>> "/v1/completions" in {route.path for route in app.routes}
        True
    """
    settings = Settings() if settings is None else settings
    serving = Serving(engine, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving.batcher.start()
        try:
            yield
        finally:
            await run_in_threadpool(serving.batcher.close)

    app = FastAPI(title="dllm", openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.serving = serving
    _add_errors(app, settings)
    _add_generation(app, serving)
    _add_information(app, serving)
    if settings.page:
        _add_page(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(_Counted, metrics=serving.metrics)
    return app


def _add_generation(app: FastAPI, serving: Serving) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await serving.answer(request, ChatBody)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await serving.answer(request, CompletionBody)


def _add_information(app: FastAPI, serving: Serving) -> None:
    engine, created = serving.engine, int(time.time())
    silence = max(SILENCE, serving.settings.timeout)

    def described() -> dict[str, Any]:
        head = {"id": engine.name, "object": "model", "created": created, "owned_by": "dllm"}
        return head | {"dllm": engine.described()}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await run_in_threadpool(described)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        check_model(engine, name)
        return await run_in_threadpool(described)

    @app.post("/v1/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        deadline = time.monotonic() + serving.settings.timeout
        raw = await serving.body(request)
        ids = await serving.read(raw, deadline, _tokens, engine, raw)
        return {"ids": ids, "count": len(ids), "positions": engine.positions}

    @app.get("/health/live")
    async def live() -> Response:
        return _status(serving.batcher.silent_seconds < silence, "live", "the engine does not answer")

    @app.get("/health/ready")
    async def ready() -> Response:
        batcher = serving.batcher
        open_ = batcher.silent_seconds < silence and not batcher.draining
        return _status(open_, "ready", "draining" if batcher.draining else "the engine does not answer")

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _tokens(engine: Engine, raw: bytes) -> list[int]:
    body = parse(TokenizeBody, raw)
    check_model(engine, body.model)
    if body.prompt is not None:
        return text_tokens(engine.tokenizer, body.prompt)
    return chat_tokens(engine.tokenizer, [(message.role, message.text) for message in body.messages])


def _status(fine: bool, word: str, otherwise: str) -> Response:
    return JSONResponse({"status": word if fine else otherwise}, 200 if fine else 503)


def _add_page(app: FastAPI) -> None:
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    text = chat_page()

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(text, headers=headers)


def _add_errors(app: FastAPI, settings: Settings) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> Response:
        if error.status_code == 413:
            own = too_large(settings)
        else:
            own = ApiError(error.status_code, str(error.detail), headers=error.headers)
        return JSONResponse(own.body(), own.status, own.headers)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        own = ApiError(400, str(error.errors()[0]["msg"]))
        return JSONResponse(own.body(), own.status)

    @app.exception_handler(Left)
    async def nobody_there(_: Request, error: Left) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        own = ApiError(500, "the server failed on this request", code="internal_error")
        return JSONResponse(own.body(), own.status)


class _Counted:
    """ASGI middleware that counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        code = 500

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            self.metrics.request(scope["path"], code)
