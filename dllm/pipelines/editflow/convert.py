"""Convert a masked language model to a model of Edit Flows: its LM head becomes both heads of tokens.

    python -m dllm.pipelines.editflow.convert answerdotai/ModernBERT-large models/editflow/ModernBERT-large
    python -m dllm.pipelines.editflow.convert --model_name_or_path Dream-org/Dream-v0-Base-7B --output_dir models/dream

The source is a ModernBERT, LLaDA, Dream, or a Qwen2 or Qwen3 that is a diffusion model
(`python -m dllm.pipelines.a2d.convert` makes one of a causal checkpoint). The folder gets the weights in their dtype,
the heads of tokens as copies of the LM head, new heads of rates, and the tokenizer. `dllm.utils.get_model` and
`get_tokenizer` load it. It is created when everything is written. Exit codes: 0 done, 1 it failed, 2 wrong options, 130
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dllm.exits import exit_code
from dllm.folders import check_free, whole_folder
from dllm.pipelines.conversion import conversion_parser, parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    source, target, dtype = _parse(arguments)

    def work() -> None:
        kind = convert(source, target, dtype=dtype)
        print(f"{target}: {kind} with the weights of {source}")

    return exit_code("dllm.pipelines.editflow.convert", work)


def convert(source: str, target: Path, *, dtype: str = "bfloat16") -> str:
    """Write a masked language model as a model of Edit Flows into a new folder.

    Args:
        source: folder or Hub name of the model.
        target: folder to create; it must not exist, or be empty.
        dtype: of the weights that are written.

    Returns:
        The name of the class.

    Raises:
        OSError: the model does not exist, or files are missing or damaged.
        ValueError: it has a backbone that no model of Edit Flows has, or is one already; or the target exists.
    """
    from dllm.models import EditFlowModel, get_model, get_tokenizer
    from dllm.models.editflow import backbone_of
    from dllm.models.sources import get_config

    check_free(target)
    backbone_of(get_config(model_name_or_path=source))
    model = EditFlowModel.from_backbone(get_model(model_name_or_path=source, dtype=dtype))
    tokenizer = get_tokenizer(model_name_or_path=source)
    if model.config.mask_token_id is None:
        model.config.mask_token_id = tokenizer.mask_token_id
    with whole_folder(target) as building:
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
    return type(model).__name__


def _parse(arguments: Sequence[str] | None) -> tuple[str, Path, str]:
    source = "folder or Hub name of the model"
    parser = conversion_parser("dllm.pipelines.editflow.convert", __doc__.partition("\n")[0], source)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights that are written")
    options = parsed(parser, arguments)
    return options.source, options.target, options.dtype


if __name__ == "__main__":
    sys.exit(main())
