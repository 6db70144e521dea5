"""Convert a causal language model to a masked-diffusion model: the same weights, and every position attends to all.

    python -m dllm.pipelines.a2d.convert Qwen/Qwen2.5-0.5B models/a2d/Qwen2.5-0.5B
    python -m dllm.pipelines.a2d.convert --model_name_or_path Qwen/Qwen3-0.6B --output_dir models/a2d/Qwen3-0.6B

The source is a Qwen2, Qwen2.5, Qwen3 or Llama checkpoint in safetensors. The folder gets these weights bit for bit, in
their dtype, the tokenizer with a mask token, and a config.json that says "is_causal": false. `dllm.utils.get_model` and
`get_tokenizer` load it, and `examples/a2d` trains it. The folder is created when everything is written. Exit codes: 0
done, 1 it failed, 2 wrong options, 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.exits import exit_code
from dllm.folders import check_free, whole_folder
from dllm.pipelines.conversion import conversion_parser, parsed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from dllm.models.official import Mapping

MASK = "<|mask|>"
# The model types that can be converted: the class of the checkpoint, and 0.1's name of what it becomes.
SOURCES = {
    "llama": ("LlamaForCausalLM", "A2DLlamaLMHeadModel"),
    "qwen2": ("Qwen2ForCausalLM", "A2DQwen2LMHeadModel"),
    "qwen3": ("Qwen3ForCausalLM", "A2DQwen3LMHeadModel"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    source, target = _parse(arguments)

    def work() -> None:
        rows = convert(source, target)
        added = f"; its embedding has {rows} more, for the mask token" if rows else ""
        print(f"{target}: a masked-diffusion model with the weights of {source}{added}")

    return exit_code("dllm.pipelines.a2d.convert", work)


def convert(source: str, target: Path) -> int:
    """Write a causal checkpoint as a masked-diffusion model into a new folder.

    No weight changes. If the mask token's id is beyond the embedding (Llama 3), embedding and head get rows up to it;
    they are the mean of the others.

    Args:
        source: folder or Hub name of a Qwen2, Qwen2.5, Qwen3 or Llama checkpoint.
        target: folder to create; it must not exist, or be empty.

    Returns:
        The number of new rows.

    Raises:
        OSError: the checkpoint does not exist, or files are missing or damaged.
        ValueError: it is of another architecture, quantised, an adapter or a diffusion model already, has a sliding
            window, or a tensor does not fit; or the target exists.

    Source: A2D of dLLM 0.1, whose converted Llama 3 has no row for its mask token.
    """
    from dllm.configs import resolve_with_base_env
    from dllm.models.sources import check_source

    check_free(target)
    source = check_source(resolve_with_base_env(source, "BASE_MODELS_DIR"))
    mapping = _mapping(source)
    tokenizer = _tokenizer(source, llama=mapping.model_class == "LlamaForCausalLM")
    model = _model(source, mapping, tokenizer.mask_token_id)
    with whole_folder(target) as building:
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
    return model.config.vocab_size - mapping.fields["vocab_size"]


def _mapping(source: str) -> Mapping:
    """What the checkpoint becomes: the mapping of the A2D checkpoint that dLLM 0.1 would make of it."""
    from dllm.models.official import a2d, marker_of
    from dllm.models.sources import adapter_at, config_at, get_config, reading

    if adapter_at(source) is not None:
        raise ValueError(f"{source} is an adapter: merge it first, by python -m dllm.tools.merge_peft_adapter")
    config, stored = get_config(model_name_or_path=source), config_at(source)
    kind, names = config.model_type, list(config.architectures or ())
    if marker_of(config) or stored.get("is_causal") is False:
        raise ValueError(f"{source} is a diffusion model already")
    if kind not in SOURCES or names != [SOURCES[kind][0]]:
        expected = ", ".join(name for name, _ in SOURCES.values())
        raise ValueError(f"{source} must be a checkpoint of {expected}, got {', '.join(names) or kind}")
    if any(layer != "full_attention" for layer in getattr(config, "layer_types", None) or ()):
        raise ValueError(f"every layer must attend to the whole sequence, got a sliding window in {source}")
    if stored.get("quantization_config"):
        raise ValueError(f"{source} is quantised: convert the checkpoint that it was made of")
    fields = {name: value for name, value in config.to_dict().items() if name in stored or name == "vocab_size"}
    with reading("configuration", source):
        return a2d.mapping(stored | fields | {"model_type": f"a2d-{kind}", "architectures": [SOURCES[kind][1]]})


def _tokenizer(source: str, *, llama: bool) -> PreTrainedTokenizerBase:
    """The tokenizer with a mask token, marked as one of the family."""
    import transformers

    from dllm.fast.model import MARKER
    from dllm.models.sources import reading

    with reading("tokenizer", source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    tokenizer.init_kwargs[MARKER] = {"family": "a2d-llama" if llama else "a2d"}
    return tokenizer


def _model(source: str, mapping: Mapping, mask: int) -> nn.Module:
    """The model in the dtype of its file, with a row for the mask token."""
    import torch
    import transformers

    from dllm.models.official.checkpoint import stored_tensors
    from dllm.models.official.load import load
    from dllm.models.sources import file_at, reading

    find = functools.partial(file_at, source)
    config = mapping.config()
    config.mask_token_id = mask
    with reading("weights", source):
        dtypes = {tensor.dtype for tensor in stored_tensors(find, source).values()}
        model = load(mapping, config, find, source, dtype=functools.reduce(torch.promote_types, dtypes))
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)  # not a causal model's
    return model


def _parse(arguments: Sequence[str] | None) -> tuple[str, Path]:
    source = "folder or Hub name of a Qwen2, Qwen2.5, Qwen3 or Llama checkpoint"
    parser = conversion_parser("dllm.pipelines.a2d.convert", __doc__.partition("\n")[0], source)
    options = parsed(parser, arguments)
    return options.source, options.target


if __name__ == "__main__":
    sys.exit(main())
