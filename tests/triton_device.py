"""Where tests run Triton kernels: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dllm_kernels import _impl

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# why Triton kernels cannot run, or None
NO_TRITON = _impl.why_not_triton() or (None if CUDA or _impl.interpreting() else "no CUDA device, TRITON_INTERPRET=0")

if NO_TRITON is None and _impl.interpreting():
    from tests.interpreter import compute_as_gpus_do, compute_only_what_counts

    compute_as_gpus_do()
    compute_only_what_counts()


def here(arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments, with their tensors on the device of the tests."""
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
