"""Load the model that comes with the package; it solves two-stage word problems and arithmetic.

`dllm/demo/model/README.md` is its model card.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
import transformers
from torch import nn

from dllm.models import get_model, get_tokenizer

SHIPPED = Path(__file__).parent / "model"


def load_shipped(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, quantize: str | None = None
) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """Load the bundled model, in evaluation mode, and its tokenizer.

    Example:
        >>> model, tokenizer = load_shipped()
        >>> tokenizer.mask_token
        '[MASK]'
    """
    return load(SHIPPED, device, dtype, quantize)


def load(
    source: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer. Never runs code that comes with a model.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        device: for the weights.
        dtype: of the weights.
        quantize: None, or "int8" (:func:`dllm.fast.quantize`).

    Raises:
        OSError, ValueError: see :func:`dllm.models.get_model` and :func:`dllm.models.get_tokenizer`.
    """
    with quiet_transformers():
        tokenizer = get_tokenizer(model_name_or_path=source)
        model = get_model(model_name_or_path=str(source), dtype=dtype, quantize=quantize)
    return model.eval().requires_grad_(False).to(device), tokenizer


class quiet_transformers:
    """Context manager: transformers shows neither progress bars nor warnings, such as those about missing weights."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()
