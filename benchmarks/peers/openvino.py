"""OpenVINO: a model's body, with products in float32 or bfloat16."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def prepare(body: nn.Module, tokens: Tensor, precision: str, folder: Path) -> Callable[[], Run]:
    """Convert the body for the shape of `tokens`, with weights in float32; the function that is returned compiles it.

    OpenVINO packs the weights for the machine, and in bfloat16 also rounds them, when it compiles.
    """
    path = folder / "body.xml"
    if not path.exists():
        exported = torch.export.export(copy.deepcopy(body).float(), (tokens,))
        openvino.save_model(openvino.convert_model(exported), path, compress_to_fp16=False)
    return functools.partial(_load, path, PRECISIONS[precision])


def _load(path: Path, precision: str) -> Run:
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_HYPER_THREADING": True,  # else it would use fewer threads than torch
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(canvas: Tensor) -> Tensor:
        return torch.from_numpy(compiled([canvas.numpy()], share_inputs=True)[0])

    return run
