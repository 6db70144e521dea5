"""Actions that run right after another package's module has been imported, without importing it for that purpose."""

from __future__ import annotations

import importlib
import importlib.abc
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_log = logging.getLogger("dllm")

Action = Callable[[ModuleType], object]


def after_import(name: str, action: Action) -> None:
    """Run `action(module)` when the module of that name has been imported: now if it has, else right after that.

    Until then one finder at the head of `sys.meta_path` waits for the name, and leaves all others to the finders behind
    it. It removes itself afterwards, and the module has the loader that it would have had. If the module is never
    imported, nothing runs. An error of `action` is logged: it must not break the import of another package.

    Args:
        name: full name of the module.
        action: what to run, once.

    Example:
        >>> after_import("json", lambda module: print(module.__name__))
        json
    """
    if name in sys.modules:
        _run(action, importlib.import_module(name))  # waits if another thread is importing it
    else:
        sys.meta_path.insert(0, _Finder(name, action))


def _run(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except Exception:
        _log.warning("what dllm does after the import of %s has failed", module.__name__, exc_info=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module by the finders behind it, and has its loader run an action."""

    def __init__(self, name: str, action: Action):
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else ()
        for finder in behind:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def imported(self, module: ModuleType) -> None:
        """Run the action, if it has not run yet."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _run(self.action, module)


class _Loader(importlib.abc.Loader):
    """A loader that tells its finder when the module has been executed, and is any other loader besides."""

    def __init__(self, loader: Any, finder: _Finder):
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.finder.imported(module)
