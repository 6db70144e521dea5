"""Running a model's body compiled, for the calling thread and while a context lasts. No model is changed or forked.

The body is the module that holds the input embedding and not the LM head. It is compiled as one graph with dynamic
shapes, which batches of any size and rows of any length share. torch makes a graph of its own for a single row, and
where a model takes another way: with a mask or without one, rows shorter than a sliding window or longer, autocast, a
KV cache. A batch of which one row is left runs that row eagerly: it is not worth a graph.

Compiling each layer apart would share one graph among all layers, but torch guards on what differs between them and
compiles each; compiling the whole model would meet the head's replaced forward, which must not be traced
(:mod:`dllm.fast.head.interception`).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm.fast.compiled.attention import replace_attention
from dllm.fast.compiled.last_layer import keep_read_rows
from dllm.fast.head.interception import replaced_forward
from dllm.fast.head.last_layer import by_graphs, reading_of, run_eagerly
from dllm.fast.head.split import output_head
from dllm.fast.model import unwrapped

# Graphs of one body. A model that needs more is not made for dynamic shapes, and each takes 10 to 50 s.
MOST_GRAPHS = 16
_BACKEND: str | Callable[..., object] = "inductor"  # tests take a cheaper one

_log = logging.getLogger("dllm.fast")


class CannotCompile(RuntimeError):
    """torch.compile cannot compile a model's body."""


@dataclass(slots=True, eq=False)
class _Compiled:
    """What is kept of a body for later calls.

    call: called with the body's own forward and its arguments.
    why_not: why the body cannot be compiled; it runs eagerly then.
    """

    call: Callable[..., object]
    why_not: str | None = None


_known: weakref.WeakKeyDictionary[nn.Module, _Compiled] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_here = threading.local()  # whose forward the thread is in


class CompiledBody:
    """A model's body as one call runs it: compiled, or eagerly from where that has failed.

    Compiled code is kept for as long as the body lives, and later calls use it. Weights may change in place, and may be
    replaced by others of the same shapes.

    After forwards in :meth:`in_place`:

    seconds: what compiling took, with the forwards in which it happened, s; 0 where earlier calls have compiled all.
    graphs: how many graphs were compiled.
    ran: whether a forward has run compiled.
    why_not: why the body runs eagerly, None while it does not.

    Args:
        model: whose body :func:`find_body` finds.
        training: only forwards that record gradients run compiled. Those that look at a model before its first step, on
            a few tokens, do not.
        required: an error of the compiler is raised rather than logged, if nothing has run compiled yet.

    Raises:
        CannotCompile: with `required`, the model has no body of its own, or an earlier call could not compile it.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> CompiledBody(BertForMaskedLM(BertConfig(**size))).why_not is None
        True
    """

    def __init__(self, model: nn.Module, *, training: bool = False, required: bool = False):
        self.name, self.training, self.required = type(unwrapped(model)).__name__, training, required
        self.seconds, self.graphs = 0.0, 0
        self._first: tuple[bool, ...] | None = None  # which sizes of the first forward were 1
        body = find_body(model)
        if body is None:
            self._compiled = _Compiled(_no_body, f"no module of {self.name} holds its layers and not its head")
        else:
            self._compiled = _compiled_form_of(body)
        self._body, self.ran = body, False
        if required and self.why_not is not None:
            raise CannotCompile(self.why_not)

    @property
    def why_not(self) -> str | None:
        return self._compiled.why_not

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the calling thread's forwards of the model run the body compiled.

        Raises:
            CannotCompile: the compiler has failed in the first forward, or fails now, and `required`.
        """
        if self.why_not is not None:
            if self.required and not self.ran:  # also where a capture's warm-up has swallowed the error
                raise CannotCompile(self.why_not)
            yield
            return
        with replaced_forward(self._body, self._run), by_graphs():
            yield

    def _run(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        watched = torch._C._len_torch_dispatch_stack() > 0  # by a TorchDispatchMode, under which torch compiles nothing
        only_looks = self.training and not torch.is_grad_enabled()
        if self.why_not is not None or watched or only_looks or not self._is_shared(args, kwargs):
            return run_eagerly(original, args, kwargs)
        began, graphs, outer = time.perf_counter(), self.graphs, getattr(_here, "body", None)
        _here.body = self
        try:
            with _torch_settings():
                result, _ = self._compiled.call(original, args, kwargs, _read_of(args, kwargs))
        except Exception as error:
            if not _is_compilers(error):
                raise
            self._give_up(error)
            return run_eagerly(original, args, kwargs)
        finally:
            _here.body = outer
        self.ran = True
        if self.graphs > graphs:
            took = time.perf_counter() - began
            self.seconds += took
            _log.warning("compiled the body of %s in %.1f s", self.name, took)
        return result

    def _is_shared(self, args: tuple, kwargs: dict) -> bool:
        """Whether a forward's graph is that of many shapes, or of the call's first forward."""
        ones = tuple(size == 1 for size in _tokens(args, kwargs).shape[:2])
        if self._first is None:
            self._first = ones
        return not any(ones) or ones == self._first

    def _give_up(self, error: Exception) -> None:
        """Run eagerly from here on, also in later calls, and log why."""
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        why = f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
        self._compiled.why_not = f"torch.compile cannot compile it: {why}"
        if self.required and not self.ran:
            raise CannotCompile(self._compiled.why_not) from error
        _log.warning("the body of %s runs eagerly, because %s", self.name, self._compiled.why_not)


def find_body(model: nn.Module) -> nn.Module | None:
    """The module of a model that runs everything before its LM head: it holds the input embedding and not the head.
    None where the head lies inside it.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> type(find_body(BertForMaskedLM(BertConfig(**size)))).__name__
        'BertModel'
    """
    model = unwrapped(model)
    head, get = output_head(model), getattr(model, "get_input_embeddings", None)
    embedding = get() if callable(get) else None
    if not isinstance(embedding, nn.Module):
        return None
    outer = model
    while outer is not None:
        holding = [child for child in outer.children() if child is not embedding and _holds(child, embedding)]
        inner = next((child for child in holding if _has_forward(child) and not _holds(child, head)), None)
        if inner is not None:
            return inner
        outer = holding[0] if holding else None
    return None


def why_compiled_already(model: nn.Module) -> str | None:
    """What of a model its owner has compiled, None where nothing is."""
    for name, module in model.named_modules():
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            return f"{type(model).__name__} is compiled already{f', in {name}' if name else ''}"
    return None


def _compiled_form_of(body: nn.Module) -> _Compiled:
    with _lock:
        if body not in _known:
            _known[body] = _Compiled(_new_compiled_call())
        return _known[body]


def _new_compiled_call() -> Callable[..., object]:
    """A function that calls what it is given, compiled. torch keeps compiled code, and counts it, by code object: each
    body has its own. The function does not hold the body, which is free to go."""

    def run_body(forward: Callable[..., object], args: tuple, kwargs: dict, read: Tensor | None) -> tuple:
        return forward(*args, **kwargs), None if read is None else read.clone()

    run_body.__code__ = run_body.__code__.replace()
    return torch.compile(run_body, fullgraph=True, dynamic=True, backend=_compile_graph)


def _compile_graph(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    """torch's default compiler with our attention, without CUDA graphs of its own; tells when it begins."""
    import torch._inductor.config as inductor
    from torch._dynamo import lookup_backend

    body: CompiledBody = _here.body
    body.graphs += 1
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    _log.warning("compiling the body of %s, %d operations: 10 to 60 s where it is new", body.name, operations)
    keep_read_rows(graph)
    replace_attention(graph)
    with inductor.patch({"triton.cudagraphs": False}):
        return lookup_backend(_BACKEND)(graph, inputs)


def _tokens(args: tuple, kwargs: dict) -> Tensor:
    """What a body is called with, [B, L]."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _read_of(args: tuple, kwargs: dict) -> Tensor | None:
    """The positions that are read of a forward with these arguments, int64 [N]; None: all are."""
    reading = reading_of(_tokens(args, kwargs).shape[:2])
    return None if reading is None else reading.read.clone()  # a view would have another graph


@contextmanager
def _torch_settings() -> Iterator[None]:
    """torch's settings for a body's forward alone: room for its graphs, beyond which torch gives up; numbers like a
    scale or an epsilon are constants, or torch would find that out in a first attempt and trace all of it again; and
    sizes that happen to be equal, as those of rows and of what is read of them, need not be equal the next time."""
    import torch._dynamo.config as dynamo
    import torch.fx.experimental._config as symbols

    room = max(dynamo.recompile_limit, MOST_GRAPHS)
    with dynamo.patch(recompile_limit=room, specialize_float=True), symbols.patch(use_duck_shape=False):
        yield


def _is_compilers(error: BaseException) -> bool:
    """Whether an error is the compiler's, not the model's own."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch.fx", "torch._subclasses"))


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(inner is part for inner in module.modules())


def _has_forward(module: nn.Module) -> bool:
    """Whether a module can be called; lists and dictionaries of modules cannot."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _no_body(forward: Callable[..., object], args: tuple, kwargs: dict, read: Tensor | None) -> tuple:
    return forward(*args, **kwargs), read
