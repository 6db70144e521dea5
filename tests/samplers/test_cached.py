"""Samplers beside a cache, held against loops over a row alone that compute what they read by other means."""

import functools
from types import SimpleNamespace

import pytest
import torch
import transformers

from dllm.core import samplers
from dllm.core.schedulers import LinearAlphaScheduler
from tests import reference_samplers as judges
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID, make_prompt
from tests.reference_samplers.row import Reading, Row, blocks
from tests.reference_samplers.rules import at_least, by_factor, surest

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
LENGTHS = (5, 1, 8, 11)
JUDGED = (1, 8, 11)  # within a block, at its border and beyond it


def prompts(model, lengths=LENGTHS, seed=0):
    return [make_prompt(model, 1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


class BlockRow(Row):
    """A row whose positions see no later block: every forward runs all of it under a mask of four dimensions. Blocks
    left of the current one are final."""

    size: int
    border: int | None = None  # a column at which a block begins; None: the first generated one

    def masks(self, start=0, end=None):
        return super().masks(start if end is None else max(start, end - self.size), end)

    def _logits(self):
        model, size = self.model, self.size
        border = self.generated_from if self.border is None else self.border
        block = (torch.arange(len(self.canvas)) - border).div(size, rounding_mode="floor")
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


@pytest.mark.covering(2)
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("name", BD3LM)
def test_bd3lm(name, family, cache, device):
    model = causal_model(family, str(device))
    settings = dict(max_new_tokens=20, block_size=8) | BD3LM[name]
    judge = functools.partial(bd3lm, **settings)
    sampler = samplers.BD3LMSampler(model, TOKENIZER)
    out = check(sampler, judge, prompts(model, JUDGED), stop_at_eos=False, cache=cache, **settings)
    assert (out.stats.cache_bytes > 0) == cache


class Kept:
    """A model that runs like Fast-dLLM: at the first step of a block everything, later a window of the canvas, beside
    the keys and values of that first step, which transformers' own cache appends the window's to.

    One memory for each canvas of a step: the row's and, under guidance, the one whose prompt is masked. Columns that do
    not run say what they said then.
    """

    def __init__(self, model, kind):
        self.model, self.kind, self.kept, self.said, self.calls = model, kind, {}, {}, 0

    def enter(self, start, end, first):
        self.start, self.end, self.first, self.calls = start, end, first, 0

    def __call__(self, input_ids):
        self.calls += 1
        columns, device = input_ids.shape[1], input_ids.device
        cache = transformers.DynamicCache()
        if self.first:
            everything = torch.ones(1, 1, columns, columns, dtype=torch.bool, device=device)
            out = self.model(input_ids=input_ids, attention_mask=everything, past_key_values=cache)
            self.kept[self.calls] = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
            self.said[self.calls] = out.logits.cpu()
            return out
        stop = columns if self.kind == "prefix" else self.end
        begin = self.start
        others = [c for c in range(columns) if not self.start <= c < stop]
        for layer, (keys, values) in enumerate(self.kept[self.calls]):
            cache.update(keys[:, :, others], values[:, :, others], layer)
        seen = torch.ones(1, 1, stop - begin, len(others) + stop - begin, dtype=torch.bool, device=device)
        positions = torch.arange(begin, stop, device=device)
        logits = self.said[self.calls].clone()  # of the columns that do not run
        logits[:, begin:stop] = self.model(
            input_ids=input_ids[:, begin:stop],
            attention_mask=seen,
            position_ids=positions[None],
            past_key_values=cache,
            **({"cache_position": positions} if transformers.__version__ < "5" else {}),
        ).logits.cpu()
        return SimpleNamespace(logits=logits)


class OwnBlock(Row):
    """A row whose earlier blocks are final."""

    size: int

    def masks(self, start=0, end=None):
        return super().masks(start if end is None else max(start, end - self.size), end)


def fast_dllm(
    model,
    prompt,
    *,
    max_new_tokens,
    block_size,
    cache,
    seed,
    threshold=None,
    factor=None,
    steps=None,
    eos_token_id=None,
    **reading,
):
    kept = Kept(model, cache)
    row = new_row(OwnBlock, kept, prompt, max_new_tokens, seed, eos_token_id, reading)
    row.size = block_size
    grid = list(blocks(len(prompt), len(row.canvas), block_size))
    for block, start, end in grid:
        masks = len(row.masks(start, end))
        counts = [1] * masks
        if steps is not None:
            counts = judges.schedule_a(masks, steps // len(grid))
            counts = counts[: sum(k > 0 for k in counts)]
        for step, k in enumerate(counts):
            if row.finished or not row.masks(start, end):
                break
            kept.enter(start, end, step == 0)
            look = row.look(block, step, end)
            if threshold is not None:
                choice = at_least(look.surety, look.eligible, threshold)
            elif factor is not None:
                choice = by_factor(look.surety, look.eligible, factor)
            else:
                choice = surest(look.surety, look.eligible, k)
            row.commit(look, choice)
    return row.trace()


FAST = {
    "threshold": dict(threshold=0.2),
    "threshold, warm": dict(threshold=0.2, temperature=0.7),
    "factor": dict(factor=2.3),
    "schedule": dict(steps=9),
    "guided": dict(threshold=0.3, cfg_scale=0.5),
    "shifted": dict(threshold=0.3, right_shift_logits=True, temperature=0.4),
    "shifted, by factor": dict(factor=2.3, right_shift_logits=True, temperature=0.4),
    "shifted, guided, scheduled": dict(steps=12, right_shift_logits=True, cfg_scale=0.5),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("name", FAST)
def test_fast_dllm(name, family, cache, device):
    """Rows begin their blocks at different steps: some run the canvas while others run a window."""
    model = causal_model(family, str(device))
    settings = dict(max_new_tokens=20, block_size=8, cache=cache) | FAST[name]
    judge = functools.partial(fast_dllm, **settings)
    sampler = samplers.FastDLLMSampler(model, TOKENIZER)
    out = check(sampler, judge, prompts(model, JUDGED), **(dict(threshold=None) | settings))
    assert out.stats.cache_bytes > 0 and (len(set(out.stats.row_forwards)) > 1 or "steps" in settings)


def llada2(
    kind,
    model,
    prompt,
    *,
    max_new_tokens,
    block_size,
    seed,
    steps=32,
    threshold=0.95,
    edit_threshold=None,
    edit_steps=16,
    edited=None,
    blocks_from="row",
    eos_token_id=None,
    **reading,
):
    """LLaDA 2.0's rule, and with an edit threshold 2.1's: both kinds of proposals are of one forward."""
    row = new_row(kind, model, prompt, max_new_tokens, seed, None, reading)
    row.size, row.border = block_size, 0 if blocks_from == "row" else len(prompt)
    first = len(prompt) // block_size * block_size if blocks_from == "row" else len(prompt)
    for block, start, end in blocks(first, len(row.canvas), block_size):
        counts, full = judges.schedule_a(len(row.masks(start, end)), steps), 0
        for step, k in enumerate([*counts, *[0] * (0 if edit_threshold is None else edit_steps)]):
            masked = row.masks(start, end)
            if not masked and edit_threshold is None:
                break
            look, edits = row.look(block, step, end), []
            if edit_threshold is not None:
                edits = [
                    p
                    for p in range(start, end)
                    if p not in masked
                    and p >= len(prompt)
                    and look.proposal[p] != row.canvas[p]
                    and look.surety.value[p].exp() > edit_threshold
                ]
            row.canvas[edits] = look.proposal[edits]
            row.commit(look, at_least(look.surety, look.eligible, threshold, k=k, strictly=True))
            if edited is not None:
                edited.append(len(edits))
            full += not masked
            if not masked and (not edits or full == edit_steps):
                break
        if eos_token_id is not None and bool((row.canvas[len(prompt) : end] == eos_token_id).any()):
            row.eos_token_id = eos_token_id
            row._stop_at_eos()
            break
    return row.trace()


@pytest.mark.covering(2)
@pytest.mark.parametrize("steps, threshold", [(3, 0.95), (8, 0.2), (8, 0.95), (20, 0.3)])
@pytest.mark.parametrize("blocks_from", ["row", "prompt"])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_llada2(family, blocks_from, steps, threshold, device):
    model = causal_model(family, str(device))
    settings = dict(max_new_tokens=20, block_size=8, steps=steps, threshold=threshold, temperature=0.4)
    settings["blocks_from"] = blocks_from
    judge = functools.partial(llada2, BlockRow, **settings)
    check(samplers.LLaDA2Sampler(model, TOKENIZER), judge, prompts(model, JUDGED), cache=True, **settings)


EDITS = {
    "often": dict(edit_threshold=0.3, edit_steps=5),
    "sometimes": dict(edit_threshold=0.6, threshold=0.3),
    "sometimes, cold": dict(edit_threshold=0.6, threshold=0.3, temperature=0.0),
    "without end": dict(edit_threshold=0.0, edit_steps=3, temperature=1.0, blocks_from="prompt"),
    "never": dict(edit_threshold=1.0),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("name", EDITS)
def test_llada21(name, family, cache, device):
    model, edited = causal_model(family, str(device)), []
    settings = dict(max_new_tokens=20, block_size=8, steps=4, temperature=0.4) | EDITS[name]
    judge = functools.partial(llada2, BlockRow if cache else Row, edited=edited, **settings)
    out = check(samplers.LLaDA21Sampler(model, TOKENIZER), judge, prompts(model, JUDGED), cache=cache, **settings)
    assert (sum(edited) > 0) == (name != "never")
    if name == "without end":
        assert max(out.stats.row_forwards) == 3 * (4 + 3)
