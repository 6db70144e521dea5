"""Whether a call compiles the model's body: what it would save against what compiling costs, known before it runs.

The decision depends on the arguments and the model alone: not on clocks, on earlier calls or on what is cached. So a
call that is repeated decides as before.

What a compiled body saves is memory traffic between products: so many seconds for each byte that a linear layer puts
out, and for each linear layer. Compiling takes so many seconds for each linear layer. Both are
measured with ModernBERT, which has rotary positions, gates and layer norms. A BERT with exact GELU saves nothing on a
CPU: there None costs a long run some seconds.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dllm.fast.compiled.body import CannotCompile, CompiledBody, find_body, why_compiled_already
from dllm.fast.int8 import Int8Experts

# Seconds saved for each byte that a linear layer puts out, and for each linear layer of a forward; measured on two
# cores (benchmarks/LOG.md). What is saved on a GPU has not been measured, so there None leaves the body as it is.
SAVED_PER_BYTE = {"cpu": 3.3e-10}
SAVED_PER_LINEAR = {"cpu": 1e-5}
# Seconds that a cold compile takes, and for each linear layer; measured on two cores.
COMPILE_SECONDS, COMPILE_SECONDS_PER_LINEAR = 8.0, 0.5
MARGIN = 2  # it pays where it saves this many times what it costs

_repeats: ContextVar[int] = ContextVar("calls of a run", default=1)


class Decision(NamedTuple):
    """What was decided for a call.

    body: the compiled body, None where it runs eagerly.
    why: in words.
    """

    body: CompiledBody | None
    why: str

    @property
    def context(self) -> Callable[[], AbstractContextManager]:
        """Makes the context in which forwards of the model run as was decided."""
        return nullcontext if self.body is None else self.body.in_place

    @property
    def compiled(self) -> bool:
        """Whether the body ran compiled; known after the call, as the compiler may fail in it."""
        return self.body is not None and self.body.ran and self.body.why_not is None

    @property
    def seconds(self) -> float:
        """What compiling took, s."""
        return 0.0 if self.body is None else self.body.seconds

    @property
    def note(self) -> str:
        """The reason, with what has happened since."""
        if self.body is None or self.body.why_not is None:
            return self.why
        return f"the body runs eagerly, because {self.body.why_not}"


EAGER = Decision(None, "")


def check_compile_body(compile_body: object, device: torch.device) -> None:
    """Check that `compile_body` is None, True or False, and that True is possible here.

    Raises:
        TypeError: it is something else.
        RuntimeError: True, and this machine cannot compile; the message says what is missing.

    Example:
        >>> check_compile_body("yes", torch.device("cpu"))
        Traceback (most recent call last):
        ...
        TypeError: compile_body must be None, True or False, got 'yes'
    """
    if compile_body is not None and not isinstance(compile_body, bool):
        raise TypeError(f"compile_body must be None, True or False, got {compile_body!r}")
    if compile_body and (missing := why_not_compile(device)):
        raise RuntimeError(f"compile_body=True cannot compile: {missing}")


def decide(
    model: nn.Module, compile_body: bool | None, *, forwards: int, tokens: int, device: torch.device
) -> Decision:
    """Decide whether a call compiles the body of its model.

    Args:
        model: of the call.
        compile_body: None: where it pays for this number of forwards; True, False.
        forwards: of the call, at most.
        tokens: of a forward, rows times columns.
        device: of the model.

    Raises:
        RuntimeError: True, and it cannot be compiled; the message has the reason.
    """
    if compile_body is False:
        return EAGER
    if why := why_compiled_already(model):
        return Decision(None, why)
    if compile_body is None and (why := why_it_does_not_pay(model, forwards, tokens, device)):
        return Decision(None, why)
    check_compile_body(compile_body, device)
    if missing := why_not_compile(device):
        return Decision(None, f"the body is not compiled: {missing}")
    try:
        body = CompiledBody(model, required=bool(compile_body))
    except CannotCompile as error:
        raise RuntimeError(f"compile_body=True, but {error}") from error
    return Decision(body, "the body is compiled" if compile_body else f"the body is compiled for {forwards} forwards")


def why_it_does_not_pay(model: nn.Module, forwards: int, tokens: int, device: torch.device) -> str | None:
    """Why compiling does not pay for so many forwards of so many tokens, None where it does.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> why_it_does_not_pay(BertForMaskedLM(BertConfig(**size)), 100, 64, torch.device("cpu"))
        'compiling the body pays from 343455 forwards on, and this run has at most 100'
    """
    forwards *= _repeats.get()
    body = find_body(model)
    widths = [] if body is None else [width for module in body.modules() if (width := _width(module))]
    if not widths:
        return "the body has no linear layer of its own"
    if _routes_in_python(body):
        return "its experts run one by one as tokens choose them, which torch.compile cannot follow"
    if device.type not in SAVED_PER_BYTE:
        return f"what a compiled body saves on {device.type} has not been measured: compile_body=True compiles it"
    size = next(body.parameters()).element_size()
    saved = tokens * sum(widths) * size * SAVED_PER_BYTE[device.type] + len(widths) * SAVED_PER_LINEAR[device.type]
    costs = COMPILE_SECONDS + COMPILE_SECONDS_PER_LINEAR * len(widths)
    least = math.ceil(MARGIN * costs / saved)
    if forwards >= least:
        return None
    return f"compiling the body pays from {least} forwards on, and this run has at most {forwards}"


@contextmanager
def repeated(times: int) -> Iterator[None]:
    """Calls within this context belong to a run of so many calls like them, so that None decides for all of it.

    Example:
        >>> with repeated(40):
        ...     pass
    """
    token = _repeats.set(times)
    try:
        yield
    finally:
        _repeats.reset(token)


def why_not_compile(device: torch.device) -> str | None:
    """Why torch.compile cannot work for a device on this machine, None where it can.

    Example:
        >>> why_not_compile(torch.device("meta"))
        'torch.compile is not used on meta'
    """
    if device.type not in ("cpu", "cuda"):
        return f"torch.compile is not used on {device.type}"
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if os.environ.get(name, "0") == "1":
            return f"{name}=1 switches torch.compile off"
    if sys.platform == "win32":
        return "it is not tried on Windows"
    named = os.environ.get("CXX", "g++")
    if not shlex.split(named) or shutil.which(shlex.split(named)[0]) is None:
        return f"no C++ compiler {named!r} was found (CXX names another)"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "the headers of Python are missing (Python.h; the package python3-dev of most systems)"
    return None


def _routes_in_python(body: nn.Module) -> bool:
    """Whether experts run in a loop over those that tokens have chosen: in transformers 4, where each is a module, and
    in transformers 5 with `experts_implementation="eager"`, unless they have 8 bits."""
    joined = getattr(getattr(body, "config", None), "_experts_implementation", None) != "eager"
    experts = [getattr(module, "experts", None) for module in body.modules()]
    modules = [each for each in experts if isinstance(each, nn.Module) and type(each) is not Int8Experts]
    return any(isinstance(each, nn.ModuleList) or not joined for each in modules)


def _width(module: nn.Module) -> int:
    """Numbers that a linear layer, also a quantised one, puts out for a token; 0 for other modules."""
    width = getattr(module, "out_features", 0)
    return width if isinstance(width, int) else 0
