"""Peers: other programs for the same operations, in plain PyTorch, eager and compiled, and in installed libraries.

Each library has an adapter module here, imported at its first call, so that a library that is installed but broken
fails alone. `lacks` names what the library cannot do and dllm does: its time is then that of less work. Libraries that
run a whole body on a CPU are in `benchmarks.bodies`, llama.cpp in `benchmarks.llama_cpp`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple


class Peer(NamedTuple):
    """A library. function: the function of its adapter, the module of this package with the library's name."""

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
    """Whether a library is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def programs(op: str) -> dict[str, Callable[..., object]]:
    """The adapters of installed libraries that offer an operation, by name.

    Example:
        >>> programs("transfer_tokens")
        {}
    """
    found = {name: peer for name, peer in PEERS.get(op, {}).items() if installed(peer.package)}
    return {name: functools.partial(_call, name, peer.function) for name, peer in found.items()}


def _call(name: str, function: str, *arguments: object) -> object:
    return getattr(importlib.import_module(f"benchmarks.peers.{name}"), function)(*arguments)
