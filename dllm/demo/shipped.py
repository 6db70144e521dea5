"""The model that comes with the package: two-stage word problems, their arithmetic and a little English small talk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch
import transformers
from torch import nn

from dllm.models.bidirectional import SERVED, bidirectional

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
    """A masked language model of transformers, in evaluation mode, and its tokenizer. Runs no code that comes with it.

    One of a causal architecture, as `python -m dllm.demo.train --architecture llama` saves it, has `"is_causal": false`
    in its config.json and is made bidirectional (:func:`dllm.models.bidirectional`). transformers 5 reads that key
    itself; 4.57 does not, so there any other way of loading gives a causal model.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        device: where to put the model.
        dtype: of its weights.

    Raises:
        OSError: there is no such folder and no such name, or no network to look it up.
        ValueError: what is there is no masked language model; of a causal architecture: its config.json lacks that key.
    """
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            model = _kind(source).from_pretrained(source, dtype=dtype)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"expected a folder with a model, or its name on the Hub, got {str(source)!r}: {reason}"
        ) from error
    model = bidirectional(model) if type(model).__name__ in SERVED else model
    return model.eval().requires_grad_(False).to(device), tokenizer


def _kind(source: Path | str) -> type:
    """The class of transformers that loads the model."""
    config = transformers.AutoConfig.from_pretrained(source)
    causal = [name for name in getattr(config, "architectures", None) or () if name in SERVED]
    if not causal:
        return transformers.AutoModelForMaskedLM
    if getattr(config, "is_causal", True):
        raise ValueError(f'expected "is_causal": false in the config.json of a {causal[0]}, as it is for diffusion')
    return transformers.AutoModelForCausalLM


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
