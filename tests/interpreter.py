"""Triton's interpreter before 3.9, with the arithmetic of GPUs where it had another.

It rounded a fused multiply-add twice, and its maximum of a number and NaN was NaN.
"""

from __future__ import annotations

import numpy as np
import triton
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def compute_as_gpus_do() -> None:
    """Change the interpreter of this process; later versions stay as they are."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        InterpreterBuilder.create_fma = _fma
        InterpreterBuilder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
        InterpreterBuilder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)


def _fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    """The product of two float32 numbers is exact in float64."""
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, and what is too large for float32
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)
