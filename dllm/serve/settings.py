"""How a server is run: limits, keys, hosts. What is served is another matter (:mod:`dllm.serve.engine`)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_kernels import _checks

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a server.

    rows: how many rows run together, at most.
    max_queue: how many rows wait, at most; more are refused with 503.
    timeout: seconds that a request may take, the time in the queue included; then 504.
    grace: seconds for which requests that have begun may go on once the server shall end.
    max_in_flight: requests of one key at a time, at most; None: no limit.
    api_keys: one of them must come with every request, except for the page and for /health; none: no key is asked for.
    hosts: names by which the server may be called, against DNS rebinding; None: any.
    page: whether / is the chat page.
    max_body: bytes of a body.
    head_timeout: seconds in which the headers of a request must have come.
    body_timeout: seconds in which its body must have come.
    max_waiting: connections that wait for their client, at most; of more the one that has waited longest is closed.
    ping: seconds between the comments that keep a stream open.

    Raises:
        TypeError, ValueError: a setting breaks a rule.

    Example:
        >>> Settings(rows=0)
        Traceback (most recent call last):
        ValueError: rows must be at least 1, got 0
    """

    rows: int = 16
    max_queue: int = 64
    timeout: float = 120.0
    grace: float = 20.0
    max_in_flight: int | None = None
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOCAL_HOSTS
    page: bool = True
    max_body: int = 2**20
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    max_waiting: int = 512
    ping: float = 15.0

    def __post_init__(self) -> None:
        for name in ("rows", "max_queue", "max_in_flight", "max_body", "max_waiting"):
            value = getattr(self, name)
            if value is not None and _checks.int64(name, value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("timeout", "head_timeout", "body_timeout", "ping"):
            if not _checks.finite_at_least_zero(name, getattr(self, name)) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        _checks.finite_at_least_zero("grace", self.grace)
        if not all(isinstance(key, str) and key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise ValueError("api_keys must be texts of printable ASCII characters, got another one")
