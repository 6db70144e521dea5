"""What others offer for the same work: plain PyTorch, eager and compiled, and libraries where they are installed.

A library's adapter is a module here of a few lines, imported when it is first called: a library that is there and
cannot be imported fails as a program does, and keeps no other out. What it cannot do that ours does stands in `lacks`:
its time is then that of less work.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple


class Peer(NamedTuple):
    """A library. function: of its adapter, a module of this package by the library's name here."""

    package: str
    distribution: str
    function: str
    lacks: str


# by operation, then by the library's name
PEERS: dict[str, dict[str, Peer]] = {
    "linear_cross_entropy": {
        "liger": Peer("liger_kernel", "liger-kernel", "mean_loss", "row weights"),
        "apple": Peer("cut_cross_entropy", "cut-cross-entropy", "weighted_loss", "exact gradients: small ones are cut"),
        "quack": Peer("quack", "quack-kernels", "mean_loss", "row weights, a bias"),
    },
    "gumbel_argmax": {
        "flashinfer": Peer("flashinfer", "flashinfer-python", "draw", "probability, margin, entropy; a seed per row"),
    },
    "truncation_floor": {
        "flashinfer": Peer("flashinfer", "flashinfer-python", "keep_top_k", "top-p"),
    },
}
DISTRIBUTIONS = {peer.package: peer.distribution for peers in PEERS.values() for peer in peers.values()}


def installed(package: str) -> bool:
    """Whether a library can be imported here; it is not."""
    return importlib.util.find_spec(package) is not None


def programs(op: str) -> dict[str, Callable[..., object]]:
    """The adapters of the libraries that offer an operation and are installed, by name.

    Example:
        >>> programs("transfer_tokens")
        {}
    """
    found = {name: peer for name, peer in PEERS.get(op, {}).items() if installed(peer.package)}
    return {name: functools.partial(_call, name, peer.function) for name, peer in found.items()}


def _call(name: str, function: str, *arguments: object) -> object:
    return getattr(importlib.import_module(f"benchmarks.peers.{name}"), function)(*arguments)
