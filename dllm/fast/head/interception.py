"""Replacing a module's forward for the calling thread only. Other threads see the module unchanged.

While any thread replaces it, the instance's `forward` is a :class:`_Dispatcher`: it runs the calling thread's
replacement, or else the forward that the instance had. Hooks are not touched. The last thread removes the dispatcher.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Given the forward that it replaces, and the arguments.
Replacement = Callable[..., object]

_dispatchers: weakref.WeakKeyDictionary[nn.Module, _Dispatcher] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class _Dispatcher:
    """The forward of one module, chosen by the calling thread.

    A module keeps one dispatcher, so that torch.compile, which does not look inside it, has no reason to recompile.
    Copies and pickles of the module have the module's original forward.
    """

    def __init__(self, module: nn.Module):
        self.module = weakref.ref(module)
        self.own: Callable[..., object] | None = None  # what the instance had in its place
        self.users = 0
        self.here = threading.local()

    def __call__(self, *args: object, **kwargs: object) -> object:
        replacement = getattr(self.here, "replacement", None)
        if replacement is None:
            return self.original(*args, **kwargs)
        return replacement(self.original, *args, **kwargs)

    @property
    def original(self) -> Callable[..., object]:
        if self.own is not None:
            return self.own
        module = self.module()
        return type(module).forward.__get__(module)

    def install(self) -> None:
        module = self.module()
        if self.users == 0:
            self.own = module.__dict__.get("forward")
            module.__dict__["forward"] = self
        self.users += 1

    def remove(self) -> None:
        self.users -= 1
        own, module = self.own, self.module()
        if module.__dict__.get("forward") is not self:  # somebody has wrapped it, and will go on calling it
            _dispatchers.pop(module, None)
            return
        if self.users:
            return
        self.own = None
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own

    def __deepcopy__(self, memo: dict) -> object:
        if self.own is not None:
            return self.own
        copied = memo.get(id(self.module()), self.module())  # maybe of another class
        return type(copied).forward.__get__(copied)

    def __reduce__(self) -> tuple:
        return getattr, (self.module(), "forward")  # loaded before the instance has one: that of its class


@contextmanager
def replaced_forward(module: nn.Module, replacement: Replacement) -> Iterator[None]:
    """Within this context the calling thread's `module.forward(...)` is `replacement(original, ...)`.

    Example:
        >>> layer = nn.Linear(2, 5)
        >>> with replaced_forward(layer, lambda original, x: x):
        ...     layer(torch.ones(1, 2)).shape
        torch.Size([1, 2])
        >>> "forward" in vars(layer)
        False
    """
    with _lock:
        dispatcher = _dispatcher_of(module)
        dispatcher.install()
    before = getattr(dispatcher.here, "replacement", None)
    dispatcher.here.replacement = replacement
    try:
        yield
    finally:
        dispatcher.here.replacement = before
        with _lock:
            dispatcher.remove()


def instance_forward(module: nn.Module) -> Callable[..., object] | None:
    """The forward set on an instance in place of its class's, apart from replacements made here; None if there is
    none."""
    forward = module.__dict__.get("forward")
    if isinstance(forward, _Dispatcher):
        forward = forward.own
    of_class = isinstance(forward, types.MethodType) and forward.__self__ is module
    return None if of_class and forward.__func__ is type(module).forward else forward


def _dispatcher_of(module: nn.Module) -> _Dispatcher:
    installed, kind = module.__dict__.get("forward"), _kind_of_dispatcher()
    if isinstance(installed, _Dispatcher):
        return installed
    known = _dispatchers.get(module)
    if type(known) is not kind or known.users:
        known = _dispatchers[module] = kind(module)
    return known


def _kind_of_dispatcher() -> type[_Dispatcher]:
    """The class to use. Compiled code cannot know which thread calls, so torch.compile must not trace a dispatcher.
    Marking it so loads the compiler, which takes seconds: it is marked only if the compiler is loaded already."""
    return _eager_dispatcher() if "torch._dynamo" in sys.modules else _Dispatcher


@functools.cache
def _eager_dispatcher() -> type[_Dispatcher]:
    return type("_EagerDispatcher", (_Dispatcher,), {"__call__": torch.compiler.disable(_Dispatcher.__call__)})
