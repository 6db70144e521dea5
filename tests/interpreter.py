"""Triton's interpreter before 3.9, with the arithmetic of GPUs where it had another, and without work for nothing.

It rounded a fused multiply-add twice, and its maximum of a number and NaN was NaN. Two thirds of its time
went into patching `triton.language` again at each call of a device function, and into sums in 64 bits that look for
overflows, of which it says nothing unless it debugs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import triton
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

EARLIER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)  # later versions stay as they are


def compute_as_gpus_do() -> None:
    """Change the arithmetic of this process's interpreter."""
    if EARLIER:
        InterpreterBuilder.create_fma = _fma
        InterpreterBuilder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
        InterpreterBuilder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)


def _fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    """The product of two float32 numbers is exact in float64."""
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, and what is too large for float32
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)


def compute_only_what_counts() -> None:
    """Leave out what changes no result of this process's interpreter: once, for it wraps what is there."""
    if EARLIER and not interpreter.interpreter_builder.options.debug:
        options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
        interpreter.interpreter_builder.options = options
        dtype_of = interpreter._get_np_dtype
        kept = cache(dtype_of)  # it makes its table anew for each answer; pointers have no hash
        interpreter._get_np_dtype = lambda dtype: (dtype_of if dtype.scalar.is_ptr() else kept)(dtype.scalar)
        _patch_once_in_a_launch()


def _patch_once_in_a_launch() -> None:
    """A launch patches the modules that its kernel sees, and restores them at its end; device functions only add those
    that they alone see."""
    patch, execute = interpreter._patch_lang, GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_new(function: Callable) -> object:
        seen = function.__globals__.values()
        modules = tuple(any(value is module for value in seen) for module in (triton.language, triton.language.core))
        if modules in patched:
            return None
        patched.add(modules)
        return patch(function)

    def launch(self, *arguments: object, **named: object) -> None:
        patched.clear()
        execute(self, *arguments, **named)

    interpreter._patch_lang, GridExecutor.__call__ = patch_new, launch
