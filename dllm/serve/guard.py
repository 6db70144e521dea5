"""What every request must pass before a route sees it: host, origin, key, and the type of its body."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dllm.serve.errors import ApiError
from dllm.serve.settings import Settings

# Pages and probes come without a key: a browser cannot send one with an address, and they tell nothing.
OPEN_PATHS = ("/", "/health/live", "/health/ready")


class Guard:
    """ASGI middleware that refuses requests which are none of the server's clients'.

    The client's key is kept as `scope["state"]["key"]`: a number, so that it can stand in logs.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.settings = app, settings
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["key"] = self._checked(scope)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _checked(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        self._check_host(headers)
        key = self._key(scope["path"], headers)
        if scope["method"] == "POST":
            self._check_body(headers)
        return key

    def _check_host(self, headers: Headers) -> None:
        host, origin, hosts = headers.get("host", ""), headers.get("origin"), self.settings.hosts
        if hosts is not None and _address(f"//{host}")[0] not in hosts:
            raise ApiError(403, "this server is not called by that host name", code="host_not_allowed")
        if origin is not None and _address(origin)[1] != host.lower():
            raise ApiError(403, "pages of other origins may not call this server", code="origin_not_allowed")

    def _key(self, path: str, headers: Headers) -> str:
        """The number of the client's key, "" where none is asked for."""
        if not self._keys or path in OPEN_PATHS:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip() if scheme.lower() == "bearer" else "")
        matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them, in constant time
        if not any(matches):
            raise ApiError(
                401,
                "a valid API key must come with the request (Authorization: Bearer KEY)",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return str(matches.index(True))

    def _check_body(self, headers: Headers) -> None:
        kind, _, parameters = headers.get("content-type", "").partition(";")
        charset = parameters.strip().lower()
        if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
            raise ApiError(415, "the body must be of type application/json, in UTF-8", code="unsupported_media_type")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ApiError(415, "the body must not be compressed", code="unsupported_media_type")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self.settings.max_body:
            raise too_large(self.settings)


def too_large(settings: Settings) -> ApiError:
    """The error of a body that is too large."""
    return ApiError(413, f"a body must have at most {settings.max_body} bytes, got more", code="body_too_large")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _address(text: str) -> tuple[str | None, str | None]:
    """Host name, and host with port, of an address, in small letters; None where it is malformed."""
    try:
        parts = urlsplit(text)
        return parts.hostname, parts.netloc.lower()
    except ValueError:
        return None, None
