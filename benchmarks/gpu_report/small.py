"""Call operations once on tiny shapes, for compute-sanitizer: ``python -m benchmarks.gpu_report.small OP ...``.

On a GPU the kernels run on 128 rows, two blocks; without one, in Triton's interpreter where it is switched on.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from benchmarks.kernels import cases, operations
from dllm_kernels import _impl


def main(ops: list[str]) -> int:
    """Call the operations with and without noise, on a GPU in float32 and bfloat16."""
    if unknown := set(ops) - set(operations.OPERATIONS):
        raise ValueError(f"operations must be among {', '.join(operations.OPERATIONS)}, got {', '.join(unknown)}")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    impl = "triton" if cuda or _impl.interpreting() else "auto"
    for case in dict.fromkeys(cases.tiny(case) for case in cases.on_gpus() if case.op in ops):
        for dtype in ("float32", "bfloat16") if cuda else ("float32",):
            variant = replace(case, dtype=dtype, rows=128 if cuda else case.rows)
            print(variant.op, variant.title, flush=True)
            operations.programs(variant, impl=impl)["ours"](operations.make_inputs(variant, device))
    if cuda:
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
