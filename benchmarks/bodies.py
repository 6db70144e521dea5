"""Programs for a model's body, from tokens [B, L] to the LM head's input [B, L, H], by name.

Every program is prepared for one shape [B, L]. Libraries are optional; `benchmarks.peers` has their adapters.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import peers

Run = Callable[[Tensor], Tensor]
Load = Callable[[], Run]  # reads what was prepared into memory


class Body(nn.Module):
    """A model without its LM head: tokens [B, L] to the head's input [B, L, H]. The weights are those of the model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self.model = copy.deepcopy(model, shared)
        parent, _, name = head_name(model).rpartition(".")
        setattr(self.model.get_submodule(parent), name, nn.Identity())

    def forward(self, tokens: Tensor) -> Tensor:
        """The head's input."""
        return self.model(tokens).logits


def head_name(model: nn.Module) -> str:
    """The name of the LM head among the model's modules."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


class OtherBody(nn.Module):
    """A model whose body is another program, for sampling loops: its own LM head on what `run` gives.

    The program takes one `shape` [B, L]. Other tokens, as in a loop's check at its start, take the model itself.
    """

    def __init__(self, model: nn.Module, run: Run, shape: torch.Size):
        super().__init__()
        self.model, self.config = model, model.config
        self.run, self.shape = run, shape

    def get_output_embeddings(self) -> nn.Module:
        """The LM head."""
        return self.model.get_output_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> object:
        """An object with the logits [B, L, V]."""
        if input_ids.shape != self.shape:
            return self.model(input_ids)
        head = self.get_output_embeddings()
        return SimpleNamespace(logits=head(self.run(input_ids).to(head.weight.dtype)))


class Program(NamedTuple):
    """A program for the body.

    precision: of its products; None: that of the model. library: the module of `benchmarks.peers` that holds its
    adapter, None for torch. packages: what the adapter imports, by the name under which it is installed.
    """

    precision: str | None = None
    library: str | None = None
    packages: tuple[str, ...] = ()


_ONNX = ("onnxruntime", "onnx", "onnxscript")
PROGRAMS = {
    "eager": Program(),
    "compiled": Program(),
    "onnxruntime": Program("float32", "onnxruntime", _ONNX),
    "onnxruntime-int8": Program("int8", "onnxruntime", _ONNX),
    "openvino": Program("float32", "openvino", ("openvino",)),
    "openvino-bfloat16": Program("bfloat16", "openvino", ("openvino",)),
}


def prepare(name: str, body: Body, tokens: Tensor, folder: Path) -> Load:
    """Whatever is done once for the program called `name`, such as an export into `folder`.

    Args:
        tokens: int64 [B, L], the shape for which the program is prepared.

    Raises:
        ModuleNotFoundError: a library is not installed; the message names what to install.
        ValueError: there is no such program.
    """
    if name not in PROGRAMS:
        raise ValueError(f"a body must be one of {', '.join(PROGRAMS)}, got {name!r}")
    program = PROGRAMS[name]
    if missing := [package for package in program.packages if not peers.installed(package)]:
        raise ModuleNotFoundError(f"not installed: pip install {' '.join(missing)}")
    if program.library:
        adapter = importlib.import_module(f"benchmarks.peers.{program.library}")
        return adapter.prepare(body, tokens, program.precision, folder)
    if name == "compiled":
        return functools.partial(torch.compile, body, dynamic=False)
    return lambda: body
