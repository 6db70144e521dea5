"""Samplers on small official checkpoints: a batch, row by row, against the plain loops of tests.reference_samplers.

The models are in float64. So another number of rows, by which a mixture's experts round otherwise, orders no tokens.
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import pytest
import torch
import transformers

from dllm.core import samplers
from dllm.models import get_model
from tests import programs
from tests import reference_samplers as judges
from tests.families.toys import CHECKPOINTS

pytestmark = pytest.mark.usefixtures("one_thread")

MASK, EOS = 202, 201
TOKENIZER = SimpleNamespace(mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS)
LENGTHS = (5, 2, 9)
SIZE = dict(max_new_tokens=12, block_size=4)
FAST = dict(cache="dual", threshold=0.05)
GUIDED = SIZE | dict(steps=6, cfg_scale=0.5)

# Case: checkpoint, sampler, its plain loop, settings of both, settings of the sampler alone.
CASES = {
    "llada": (
        "llada",
        samplers.LLaDASampler,
        functools.partial(judges.llada, gen_length=12, block_length=4, eos_id=EOS, eot_id=None),
        dict(steps=6),
        SIZE,
    ),
    "llada, guided": ("llada", samplers.MDLMSampler, judges.mdlm_sample, GUIDED, {}),
    "llada_moe, guided": ("lladamoe", samplers.MDLMSampler, judges.mdlm_sample, GUIDED, {}),
    "dream, guided": (
        "dream",
        samplers.MDLMSampler,
        functools.partial(judges.mdlm_sample, right_shift_logits=True),
        GUIDED,
        {},
    ),
    "rnd1, guided": (
        "rnd1",
        samplers.MDLMSampler,
        functools.partial(judges.mdlm_sample, right_shift_logits=True),
        GUIDED,
        {},
    ),
    "a2d, guided": ("a2d-qwen3", samplers.MDLMSampler, judges.mdlm_sample, GUIDED, {}),
    "llada, dual cache": ("llada", samplers.FastDLLMSampler, judges.fast_dllm, SIZE | FAST, {}),
    "llada_moe": (
        "lladamoe",
        samplers.LLaDASampler,
        functools.partial(judges.llada, gen_length=12, block_length=4, eos_id=EOS, eot_id=None),
        dict(steps=6, temperature=0.5),
        SIZE,
    ),
    "llada_moe, dual cache": ("lladamoe", samplers.FastDLLMSampler, judges.fast_dllm, SIZE | FAST, {}),
    "dream": (
        "dream",
        samplers.DreamSampler,
        functools.partial(judges.dream, schedule="time"),
        dict(max_new_tokens=12, steps=7, alg="entropy", temperature=0.2, top_p=0.95, top_k=None),
        dict(schedule="time"),
    ),
    "dream, dual cache": (
        "dream",
        samplers.FastDLLMSampler,
        functools.partial(judges.fast_dllm, right_shift_logits=True),
        SIZE | FAST,
        {},
    ),
    "rnd1": (
        "rnd1",
        samplers.RND1Sampler,
        functools.partial(judges.rnd1, last_token=EOS),
        dict(max_new_tokens=12, steps=5, temperature=0.6),
        dict(max_length=None),
    ),
    "rnd1, prefix cache": (
        "rnd1",
        samplers.FastDLLMSampler,
        functools.partial(judges.fast_dllm, right_shift_logits=True),
        SIZE | FAST | dict(cache="prefix"),
        {},
    ),
    "rnd1, dual cache": (
        "rnd1",
        samplers.FastDLLMSampler,
        functools.partial(judges.fast_dllm, right_shift_logits=True),
        SIZE | FAST,
        {},
    ),
    "a2d": ("a2d-qwen3", samplers.MDLMSampler, judges.mdlm_sample, SIZE | dict(steps=6, temperature=0.7), {}),
    "a2d, dual cache": ("a2d-qwen3", samplers.FastDLLMSampler, judges.fast_dllm, SIZE | FAST, {}),
    "a2d, block by block": ("a2d-qwen3", samplers.BD3LMSampler, judges.bd3lm, SIZE | dict(steps=6), {}),
    "llada2": (
        "llada2",
        samplers.LLaDA2Sampler,
        judges.llada2_block_causal,
        SIZE | dict(steps=4, threshold=0.05, blocks_from="row"),
        dict(cache=True),
    ),
    "llada2, guided": (
        "llada2",
        samplers.LLaDA2Sampler,
        judges.llada2_block_causal,
        SIZE | dict(steps=4, threshold=0.05, blocks_from="row", cfg_scale=0.5),
        dict(cache=True),
    ),
    "llada2.1": (
        "llada2",
        samplers.LLaDA21Sampler,
        judges.llada21,
        SIZE | dict(steps=4, threshold=0.05, edit_threshold=0.1, edit_steps=2, blocks_from="row"),
        dict(cache=True),
    ),
}


@functools.lru_cache
def load(name: str) -> torch.nn.Module:
    # the experts of GLM-4-MoE in transformers 4 have no float64
    dtype = "float32" if name == "llada2" and transformers.__version__.startswith("4.") else "float64"
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype=dtype).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the others of transformers 5 have no float64
    return model


def prompts(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(200, (length,), generator=generator).tolist() for length in LENGTHS]


def check(out, trace, row: int, *, pads_left: bool = False) -> None:
    """Row `row` has the tokens of its plain loop after every step."""
    width = len(trace.canvas)
    columns = slice(-width, None) if pads_left else slice(width)
    difference = judges.first_difference([canvas[row, columns] for canvas in out.histories], trace)
    assert difference is None, difference
    assert out.sequences[row, columns].tolist() == trace.canvas.tolist()


@pytest.mark.parametrize("case", CASES)
def test_sample(case):
    name, kind, judge, shared, own = CASES[case]
    model = load(name)
    out = kind(model, TOKENIZER).sample(prompts(), seed=3, return_dict=True, **shared, **own)
    for row, prompt in enumerate(prompts()):
        trace = judge(model, torch.tensor(prompt), mask_id=MASK, seed=3 + row, **shared)
        check(out, trace, row, pads_left=kind.pads_left)


@pytest.mark.parametrize("eos", [False, True])
def test_one_column_of_rnd1_is_the_reserved_one(eos):
    """No forward is needed for it; a row with more columns beside it has its own."""
    tokenizer = SimpleNamespace(mask_token_id=MASK, eos_token_id=EOS, pad_token_id=200)
    sampler, last = samplers.RND1Sampler(load("rnd1"), tokenizer), EOS if eos else 200
    out = sampler.sample([[5, 6]], max_new_tokens=1, add_eos_at_end=eos, return_dict=True)
    assert (out.sequences.tolist(), out.stats.forwards) == ([[5, 6, last]], 0)
    rows = [[5, 6], [7, 8, 9, 10]]
    both = sampler.sample(rows, max_new_tokens=None, max_length=5, add_eos_at_end=eos, seed=0)
    alone = sampler.sample(rows[:1], max_new_tokens=None, max_length=5, add_eos_at_end=eos, seed=0)
    assert torch.equal(both[:1], alone) and both[1].tolist() == [7, 8, 9, 10, last]


@pytest.mark.parametrize(
    "name, shifted",
    [("llada", False), ("lladamoe", False), ("dream", True), ("rnd1", True), ("a2d-qwen3", False), ("llada2", False)],
)
def test_infill(name, shifted):
    """Texts of different length, every third token masked; LLaDA2 in blocks, the last of which has no mask."""
    model, rows = load(name), prompts(seed=1)
    rows = [[MASK if column % 3 == 1 else token for column, token in enumerate(row)] for row in rows]
    if name == "llada2":
        kind, judge, settings = (
            samplers.LLaDA2Sampler,
            judges.llada2_infill,
            dict(block_size=4, steps=2, threshold=0.05),
        )
    else:
        kind, judge, settings = samplers.MDLMSampler, judges.mdlm_infill, dict(block_size=None, steps=2)
    shift = dict(right_shift_logits=True) if shifted else {}
    out = kind(model, TOKENIZER).infill(rows, seed=3, return_dict=True, **settings)
    for row, text in enumerate(rows):
        check(out, judge(model, torch.tensor(text), mask_id=MASK, seed=3 + row, **settings, **shift), row)


def test_the_table_of_families_names_cases_that_exist():
    """docs/families.md; a cell with two cases names the second by its parameters only."""
    pytest.importorskip("lm_eval")  # without it the cases of evaluation are not collected
    page = (CHECKPOINTS.parents[2] / "docs" / "families.md").read_text()
    named = set(re.findall(r"`(test_\w+\[[^]]+\])`", page))
    run = programs.run("-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", CHECKPOINTS.parent)
    there = {line.partition("::")[2] for line in run.stdout.splitlines()}
    assert named and {name for name in named if not any(case.startswith(name[:-1]) for case in there)} == set()
