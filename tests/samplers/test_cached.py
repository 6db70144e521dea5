"""Samplers beside a cache, held against loops over a row alone that compute what they read by other means."""

import functools
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.core.schedulers import LinearAlphaScheduler
from tests import reference_samplers as judges
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID, make_prompt
from tests.reference_samplers.row import Reading, Row, blocks
from tests.reference_samplers.rules import surest

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
LENGTHS = (5, 1, 8, 11)


def prompts(model, lengths=LENGTHS, seed=0):
    return [make_prompt(model, 1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


class BlockRow(Row):
    """A row whose positions see no later block: every forward runs all of it under a mask of four dimensions. Blocks
    left of the current one are final."""

    size: int

    def masks(self, start=0, end=None):
        return super().masks(start if end is None else max(start, end - self.size), end)

    def _logits(self):
        model, size = self.model, self.size
        block = (torch.arange(len(self.canvas)) - self.generated_from).div(size, rounding_mode="floor")
        seen = (block[None, :] <= block[:, None])[None, None].to(self.canvas.device)
        self.model = lambda input_ids: model(input_ids=input_ids, attention_mask=seen)
        try:
            return super()._logits()
        finally:
            self.model = model


def new_row(kind, model, prompt, max_new_tokens, seed, eos_token_id, reading):
    canvas = torch.cat([torch.tensor(prompt, dtype=torch.int64), torch.full((max_new_tokens,), MASK_ID)])
    given = dict(generated_from=len(prompt), mask_id=MASK_ID, seed=seed, eos_token_id=eos_token_id)
    return kind(model, canvas, **given, reading=Reading(**reading))


def bd3lm(
    model, prompt, *, max_new_tokens, block_size, steps, seed, remasking="low_confidence", eos_token_id=None, **reading
):
    """Schedule B, blocks that see no later one, a stop between blocks."""
    row = new_row(BlockRow, model, prompt, max_new_tokens, seed, None, reading)
    row.size = block_size
    grid = list(blocks(len(prompt), len(row.canvas), block_size))
    for block, start, end in grid:
        counts = judges.schedule_b(len(row.masks(start, end)), -(-steps // len(grid)), LinearAlphaScheduler())
        for step, k in enumerate(counts):
            look = row.look(block, step, end)
            confidence = row.uniform(step) if remasking == "random" else look.surety
            row.commit(look, surest(confidence, look.eligible, k))
        if eos_token_id is not None and bool((row.canvas[len(prompt) : end] == eos_token_id).any()):
            row.eos_token_id = eos_token_id
            row._stop_at_eos()
            break
    return row.trace()


def check(sampler, judge, rows, *, seed=11, **settings):
    out = sampler.sample(rows, seed=seed, return_dict=True, **settings)
    for i, row in enumerate(rows):
        trace = judge(sampler.model, row, seed=seed + i)
        width = len(trace.canvas)
        got = [canvas[i, :width] for canvas in out.histories]
        if bool((out.sequences[i, :width] == EOS).any()):  # what is filled up with EOS at the end was not so before
            difference = judges.first_difference(out.sequences[i, :width], trace)
        else:
            difference = judges.first_difference(got, trace)
        assert difference is None, (i, difference)
        assert out.stats.row_forwards[i] == trace.forwards
    assert out.stats.forwards == max(out.stats.row_forwards, default=0)
    return out


BD3LM = {
    "plain": dict(steps=12),
    "one step a token": dict(steps=40),
    "one step a block": dict(steps=1),
    "random, warm": dict(steps=10, remasking="random", temperature=0.8),
    "guided": dict(steps=9, cfg_scale=0.7, temperature=0.5),
    "suppressed": dict(steps=12, suppress_tokens=[*range(20, 60)], begin_suppress_tokens=[*range(60, 90)]),
    "shifted": dict(steps=12, right_shift_logits=True, temperature=0.6),
    "shifted, guided": dict(steps=12, right_shift_logits=True, cfg_scale=0.4),
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("name", BD3LM)
def test_bd3lm(name, family, cache, device):
    model = causal_model(family, str(device))
    settings = dict(max_new_tokens=20, block_size=8) | BD3LM[name]
    judge = functools.partial(bd3lm, **settings)
    sampler = samplers.BD3LMSampler(model, TOKENIZER)
    out = check(sampler, judge, prompts(model), stop_at_eos=False, cache=cache, **settings)
    assert (out.stats.cache_bytes > 0) == cache
