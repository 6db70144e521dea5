"""NemotronDiffusionSampler on a module with the interface of the published code, held against that code's own loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dllm.core.samplers import NemotronDiffusionSampler
from dllm.core.samplers.nemotron_model import follow_masks
from tests.nemotron_models import tiny_nemotron

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=None, eos_token_id=2, pad_token_id=1)


def prompts(lengths=(5, 1, 11, 20)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 97, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("threshold, attention", [(0.3, "eager"), (0.9, "sdpa")])
def test_tokens_and_runs_of_the_models_own_loop(threshold, attention):
    """Rows together, with masks; the loop runs each alone, with flags. Positions reach where queries are scaled."""
    model, rows = tiny_nemotron(), prompts()
    model.encoder.config._attn_implementation = attention
    own = [model.generate(torch.tensor([row]), 24, 8, threshold) for row in rows]
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    out = sampler.sample(rows, max_new_tokens=24, threshold=threshold, stop_at_eos=False, return_dict=True)
    for i, (row, (tokens, runs)) in enumerate(zip(rows, own, strict=True)):
        assert out.sequences[i, : len(row) + 24].tolist() == tokens[0].tolist()
        assert out.stats.row_forwards[i] == runs - 1  # what the last block leaves in the cache nobody reads
    again = [model.generate(torch.tensor([row]), 24, 8, threshold) for row in rows]
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(own, again, strict=True))
    assert all(layer.self_attn.diffusion_lm for layer in model.encoder.layers)


def test_hooks_are_there_once_and_change_no_other_forward():
    model, plain = tiny_nemotron(), tiny_nemotron()
    for _ in range(2):
        follow_masks(model)
    hooks = [module for module in model.modules() if module._forward_pre_hooks]
    assert len(hooks) == 3 and all(len(module._forward_pre_hooks) == 1 for module in hooks)
    tokens = torch.tensor([prompts()[0]])
    for options in (dict(use_cache=True, use_causal_mask=True), dict(use_cache=False), {}):
        assert torch.equal(model(tokens, **options).logits, plain(tokens, **options).logits)


def test_an_error_leaves_no_mask_behind():
    model = tiny_nemotron()
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    sampler.sample(prompts(), max_new_tokens=8)
    handle = model.encoder.layers[1].mlp.register_forward_pre_hook(_fail)
    with pytest.raises((RuntimeError, ValueError), match="stop here"):
        sampler.sample(prompts(), max_new_tokens=8)
    handle.remove()
    assert all(layer.self_attn.diffusion_lm for layer in model.encoder.layers)
    tokens = torch.tensor([prompts()[0]])
    assert torch.equal(model(tokens).logits, tiny_nemotron()(tokens).logits)


def _fail(*arguments: object) -> None:
    raise RuntimeError("stop here")


def test_a_model_that_does_not_follow_its_masks_is_refused():
    model = tiny_nemotron()
    for layer in model.encoder.layers:
        layer.self_attn.register_forward_pre_hook(_without_mask, with_kwargs=True)
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    for layer in model.encoder.layers:
        layer.self_attn.register_forward_pre_hook(_without_mask, with_kwargs=True)
    with pytest.raises(ValueError, match="must see what attention_mask"):
        sampler.sample(prompts(), max_new_tokens=8)


def _without_mask(module: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, kwargs | {"attention_mask": None}
