"""ONNX Runtime: a model's body exported by torch.onnx, in float32 or with weights and activations in int8."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]


def prepare(body: nn.Module, tokens: Tensor, precision: str, folder: Path) -> Callable[[], Run]:
    """Export the body for the shape of `tokens`; the function that is returned loads it.

    Args:
        precision: "float32", or "int8": quantised weights, and activations quantised at each call.
    """
    path = folder / "body.onnx"
    if not path.exists():
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every operator that it lacks
        exported = copy.deepcopy(body).float()  # its CPU kernels have no bfloat16
        torch.onnx.export(exported, (tokens,), dynamo=True, verbose=False).save(path, external_data=True)
    if precision == "int8":
        quantised = folder / "body.int8.onnx"
        quantize_dynamic(path, quantised, use_external_data_format=True)
        path = quantised
    return functools.partial(_load, path)


def _load(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (tokens,) = session.get_inputs()

    def run(canvas: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {tokens.name: canvas.numpy()})[0])

    return run
