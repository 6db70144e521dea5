"""Make one model of a base model and the LoRA adapter that was trained on it.

    python -m dllm.tools.merge_peft_adapter --adapter_model_name_or_path models/bert-lora/checkpoint-final \
        --output_model_name_or_path models/bert-merged

The merge is computed in float32 and saved in `--dtype`, as safetensors, with the tokenizer. The folder appears when all
is written. Exit codes: 0 done, 1 it could not be done, 2 options that make no sense, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dllm.tools.command import check_free, exit_code, whole_folder

WEIGHTS = "adapter_model.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    options = _parser().parse_args(arguments)

    def work() -> None:
        merge(
            options.adapter_model_name_or_path,
            options.output_model_name_or_path,
            base=options.base_model_name_or_path,
            dtype=options.dtype,
        )
        print(f"{options.output_model_name_or_path}: base model and adapter as one")

    return exit_code(work)


def merge(adapter: str, output: Path, *, base: str | None = None, dtype: str = "bfloat16") -> None:
    """Save base model + adapter as a model of its own: for a LoRA adapter W + (alpha / r) B A, in float32.

    Args:
        adapter: a folder, or a name on the Hub, with an adapter in safetensors.
        output: the folder that appears.
        base: the model it was trained on; by default the one that the adapter names.
        dtype: of the saved weights, float32, bfloat16 or float16.

    Raises:
        ImportError: peft is not installed.
        OSError: there is no such adapter, or no such model.
        ValueError: an adapter that is not whole or not of this model, weights that are not finite, an unknown dtype, an
            output that exists.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError("peft is not installed: pip install 'dllm[lora]'")
    import peft
    import torch

    check_free(output)
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    folder = _adapter_folder(adapter)
    base = base or peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise ValueError(f"{folder} does not name its base model: name it by --base_model_name_or_path")
    merged = _with_adapter(base, folder).merge_and_unload(progressbar=True, safe_merge=True).to(kind)
    with whole_folder(output) as building:
        merged.save_pretrained(building, safe_serialization=True)
        _tokenizer(folder, base).save_pretrained(building)


def _adapter_folder(adapter: str) -> Path:
    folder = Path(adapter)
    if not folder.is_dir():
        if adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no folder {adapter}")
        import huggingface_hub

        folder = Path(huggingface_hub.snapshot_download(adapter, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    for name in ("adapter_config.json", WEIGHTS):
        if not (folder / name).exists():
            raise ValueError(f"{folder} must hold an adapter in safetensors, got no {name}")
    return folder


def _with_adapter(base: str, folder: Path) -> Any:
    import peft
    import safetensors

    from dllm.models import get_model

    try:
        with safetensors.safe_open(folder / WEIGHTS, framework="pt") as weights:
            weights.keys()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is no whole file of safetensors: {error}") from error
    model = get_model(model_name_or_path=base, dtype="float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            return peft.PeftModel.from_pretrained(model, str(folder))
        except (RuntimeError, UserWarning) as error:  # other shapes; other names
            raise ValueError(f"{folder} is no adapter of {base}: {error}") from error


def _tokenizer(folder: Path, base: str) -> Any:
    import transformers

    own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    return transformers.AutoTokenizer.from_pretrained(folder if own else base)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.merge_peft_adapter", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--adapter_model_name_or_path", required=True, help="the adapter, a folder or a name on the Hub")
    add("--output_model_name_or_path", required=True, type=Path, help="the folder that appears")
    add("--base_model_name_or_path", default=None, help="the model (default: the one that the adapter names)")
    add("--dtype", default="bfloat16", help="of the saved weights (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
