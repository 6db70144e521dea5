"""Errors that clients get, in the shape that OpenAI's API has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than what was asked for.

    Args:
        status: of HTTP.
        message: one sentence for the caller.
        param: the field of the body that is wrong.
        code: a word for programs.
        headers: of the response.

    Example:
        >>> ApiError(400, "n must be at least 1, got 0", param="n").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def overloaded(message: str, code: str) -> ApiError:
    """The error of a server that takes no more rows now; clients try again by themselves."""
    return ApiError(503, message, code=code, headers={"Retry-After": "1"})
