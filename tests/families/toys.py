"""Small official checkpoints, written by each family's own code, with its logits; and variants of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dllm.fast.compiled.body import CompiledBody
from dllm.models import get_model
from tests.models import MASK_ID

CHECKPOINTS = Path(__file__).parent / "checkpoints"
NAMES = ("llada", "lladamoe", "dream", "rnd1", "a2d-qwen3", "llada2")


def config_of(name: str) -> dict:
    """The official configuration."""
    return json.loads((CHECKPOINTS / name / "config.json").read_text())


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """The official tensors."""
    return load_file(CHECKPOINTS / name / "model.safetensors")


def reference_of(name: str) -> dict[str, torch.Tensor]:
    """ids and mask [2, 24]; the official logits [2, 24, 256] in float32: full, padded, and for LLaDA2 block."""
    return load_file(CHECKPOINTS / name / "reference.safetensors")


def load(name: str, **options) -> nn.Module:
    """The model in float32, with the mask token of the tests of training."""
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32", **options)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the others of transformers 5 have no float64, as truths have
    model.config.mask_token_id = MASK_ID
    return model


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor], shards: int = 1) -> str:
    """Write a checkpoint, in so many shards, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)
    names = list(tensors)
    size = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * size : (number + 1) * size]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def random_like(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of these shapes: norms near 1, others small enough that no logit saturates."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        made[name] = 1 + 0.1 * noise if "norm" in name or "ln_f" in name else 0.15 * noise
    return made


def tokens(rows: int = 2, columns: int = 24, seed: int = 0) -> torch.Tensor:
    """Random tokens of the checkpoints' vocabulary, int64 [rows, columns]."""
    return torch.randint(10, 250, (rows, columns), generator=torch.Generator().manual_seed(seed))


def assert_one_graph(model: nn.Module, compiled: CompiledBody) -> None:
    """A compiled body has the eager hidden states at three shapes, with one graph."""
    for seed, shape in enumerate([(2, 16), (3, 24), (5, 9)]):
        ids = tokens(*shape, seed=seed)
        want = model.base_model(ids).last_hidden_state
        with compiled.in_place():
            torch.testing.assert_close(model.base_model(ids).last_hidden_state, want)
    assert (compiled.graphs, compiled.why_not) == (1, None)
