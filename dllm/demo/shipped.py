"""The model that comes with the package: two-stage word problems, their arithmetic and a little English small talk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
import transformers
from torch import nn

from dllm.models import get_model, get_tokenizer

SHIPPED = Path(__file__).parent / "model"


def load_shipped(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """The shipped model, in evaluation mode, and its tokenizer; see the card beside it, dllm/demo/model/README.md.

    Example:
        >>> model, tokenizer = load_shipped()
        >>> tokenizer.mask_token
        '[MASK]'
    """
    return load(SHIPPED, device, dtype)


def load(
    source: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, transformers.PreTrainedTokenizerBase]:
    """A model (:func:`dllm.models.get_model`), in evaluation mode, and its tokenizer. Runs no code that comes with it.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        device: where to put the model.
        dtype: of its weights.

    Raises:
        OSError, ValueError: as :func:`dllm.models.get_model` and :func:`dllm.models.get_tokenizer`.
    """
    with quiet_transformers():
        tokenizer = get_tokenizer(model_name_or_path=source)
        model = get_model(model_name_or_path=str(source), dtype=dtype)
    return model.eval().requires_grad_(False).to(device), tokenizer


class quiet_transformers:
    """While it lasts transformers shows neither loading bars nor what it thinks of the weights it finds."""

    def __enter__(self) -> None:
        self.verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transformers.logging.set_verbosity(self.verbosity)
        transformers.logging.enable_progress_bar()
