"""Merge a LoRA adapter into its base model.

    python -m dllm.tools.merge_peft_adapter --adapter_model_name_or_path models/bert-lora/checkpoint-final \
        --output_model_name_or_path models/bert-merged

The merge is computed in float32 and saved in `--dtype`, as safetensors, with the tokenizer. The output folder is
created when everything is written. Exit codes: 0 done, 1 it failed, 2 wrong options, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.exits import exit_code
from dllm.tools.command import check_free, dtype_name, whole_folder, yes_or_no

if TYPE_CHECKING:
    from torch import nn

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
        if options.push_to_hub and str(options.output_model_name_or_path).count("/") != 1:
            raise ValueError(
                f"push_to_hub needs an output that is named owner/name, got {options.output_model_name_or_path}"
            )
        merge(
            options.adapter_model_name_or_path,
            options.output_model_name_or_path,
            base=options.base_model_name_or_path,
            dtype=options.dtype,
        )
        if options.push_to_hub:
            print(f"uploaded: {_push(options.output_model_name_or_path)}")
        print(f"{options.output_model_name_or_path}: base model and adapter as one")

    return exit_code("merge_peft_adapter", work)


def merge(adapter: str, output: Path, *, base: str | None = None, dtype: str = "bfloat16") -> None:
    """Merge an adapter into its base model and save the result: for LoRA W + (alpha / r) B A, in float32.

    If the head and the embedding share weights and the adapter changes one of them, they are saved separately.

    Args:
        adapter: folder or Hub name of an adapter in safetensors.
        output: folder to create.
        base: base model; by default the one that the adapter's configuration names.
        dtype: dtype of the saved weights: float32, bfloat16 or float16.

    Raises:
        ImportError: peft is not installed.
        OSError: the adapter or the model does not exist.
        ValueError: an adapter that does not fit the model or cannot be merged, weights that are not finite, an unknown
            dtype, or an output that exists.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError("peft is not installed: pip install 'dllm[lora]'")
    import torch

    from dllm.models import get_model
    from dllm.models.adapters import with_adapter
    from dllm.models.sources import base_of

    check_free(output)
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    folder = _adapter_folder(adapter)
    if not base:
        try:
            base = base_of(folder)
        except ValueError as error:
            raise ValueError(f"{error}: name it by --base_model_name_or_path") from error
    _check_whole(folder / WEIGHTS)  # before the base model is read
    model = with_adapter(get_model(model_name_or_path=base, dtype="float32"), str(folder))
    merged = _merged(model.eval(), folder).to(kind)
    with whole_folder(output) as building:
        merged.save_pretrained(building, safe_serialization=True)
        _tokenizer(folder, base).save_pretrained(building)


def _push(folder: Path) -> str:
    """Upload a folder to the repository of its name, and return the URL. A new repository is private.

    Raises:
        OSError: the Hub cannot be reached or refuses.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    repository = hub.create_repo(folder.as_posix(), private=True, exist_ok=True).repo_id
    return str(hub.upload_folder(repo_id=repository, folder_path=folder))


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


def _check_whole(file: Path) -> None:
    import safetensors

    try:
        with safetensors.safe_open(file, framework="pt") as weights:
            weights.keys()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no whole file of safetensors: {error}") from error


def _merged(model: nn.Module, folder: Path) -> nn.Module:
    """Merge the adapter into the model, and check that the logits stay the same.

    Raises:
        ValueError: the logits differ, or would, since an adapted weight is another module's too.
    """
    import torch

    from dllm.models.tied import separate, shares_weights

    vocabulary = model.get_input_embeddings().weight.shape[0]
    probe = torch.linspace(0, vocabulary - 1, 16).long()[None]
    with torch.no_grad():
        if not _on_embedding_or_head(model):
            _check_apart(model, folder)
        truth = model(input_ids=probe).logits
        if shares_weights(model) and _on_embedding_or_head(model):
            separate(model)
        merged = model.merge_and_unload(progressbar=True, safe_merge=True)
        found = merged(input_ids=probe).logits
    error, largest = float((found - truth).abs().max()), float(truth.abs().max())
    # rounding errors are far below this: half of float32's digits
    if not error <= torch.finfo(torch.float32).eps ** 0.5 * largest:
        raise ValueError(
            f"the adapter at {folder} cannot be merged: logits up to {largest:.3g} would change by up to {error:.3g}"
        )
    return merged


def _check_apart(model: nn.Module, folder: Path) -> None:
    """Check that no adapted weight is another module's too, as those of DiffusionGemma's encoder are its decoder's: the
    merged weight would have the adapter in both modules, and both adapters where both have one.

    Raises:
        ValueError: it is; names the module.
    """
    users = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if base is not None and any(users[id(weight)] > 1 for weight in base.parameters(recurse=False)):
            raise ValueError(
                f"the adapter at {folder} cannot be merged: {name.removeprefix('base_model.model.')} shares its weight "
                "with another module, which would change too"
            )


def _on_embedding_or_head(model: nn.Module) -> bool:
    """Whether the adapter changes the embedding or the head: peft replaces these modules by its own."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return any(type(end).__module__.partition(".")[0] == "peft" for end in ends)


def _tokenizer(folder: Path, base: str) -> Any:
    import transformers

    from dllm.models.sources import reading

    own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    source = folder if own else base
    with reading("tokenizer", source):
        return transformers.AutoTokenizer.from_pretrained(source)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.merge_peft_adapter", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--adapter_model_name_or_path", required=True, help="folder or Hub name of the adapter")
    add("--output_model_name_or_path", required=True, type=Path, help="output folder")
    add("--base_model_name_or_path", default=None, help="base model (default: the one that the adapter names)")
    add(
        "--dtype",
        type=dtype_name,
        default="bfloat16",
        help="dtype of the saved weights: bfloat16, float32, float16, or bf16, fp32, fp16 (default: %(default)s)",
    )
    add("--push_to_hub", type=yes_or_no, default=False, help="also upload the folder, whose name must be owner/name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
