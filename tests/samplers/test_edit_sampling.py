"""EditFlowSampler: published steps, a plain loop as judge, the law of draws, what it may edit, a trained toy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dllm.configs import ModelArguments
from dllm.core.samplers import EditFlowSampler, EditFlowSamplerConfig
from dllm.core.samplers.edit_loop import EditLoop, EditLoopSettings
from dllm.core.samplers.edit_texts import EditedTexts, StepEdits, allowed, draw_edits, leap
from dllm.core.schedulers import CosineKappaScheduler, CubicKappaScheduler, LinearAlphaScheduler, LinearKappaScheduler
from dllm.core.trainers import EditFlowCollator
from dllm.models import EditFlowModel, load_peft
from dllm_kernels import philox
from tests.core.edit_runs import BOS, TOKENS, model_of, trainer_of
from tests.families.toys import load
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = json.loads((Path(__file__).parents[1] / "core" / "data" / "editflow.json").read_text())["leap"]
PROMPTS = [[BOS, 20, 21, 22], [30, 31], [BOS, 40, 41, 42, 43, 44, 45]]


def texts_of(row: list[int], prompt: int) -> EditedTexts:
    position = torch.arange(len(row))[None]
    return EditedTexts(torch.tensor([row]), torch.tensor([len(row)]), position >= prompt, position >= prompt - 1)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"prompt of {fact['prompt_len']}")
def test_published_steps(fact):
    """Rates of 0 and 10^9: nothing is left to chance, and tokens are the likeliest."""
    rates = torch.stack([torch.tensor(fact["rates"][f"{kind}_rate_hat"]) for kind in ("sub", "del", "ins")], -1)
    texts = texts_of(fact["x"], 0 if fact["edit_prompt"] else fact["prompt_len"])
    edits = draw_edits(allowed(rates, texts), 0.01, torch.tensor([5]), step=0)
    tokens = (torch.tensor(fact["logits"][f"{kind}_logits"]).argmax(-1) for kind in ("sub", "ins"))
    after = leap(texts, edits, *tokens, limit=None)
    assert after.tokens.tolist() == [fact["after"]] and bool(edits.rows) == fact["changed"]


def plain_sample(model: EditFlowModel, row: list[int], free: list[bool], seed: int, tau: float) -> list[int]:
    """One text, a token at a time: every step runs the model, and no random number is shared."""
    opens = [free[p] or (p + 1 < len(row) and free[p + 1]) for p in range(len(row))]
    opens[-1] = True
    for step in range(math.ceil(1 / tau)):
        t = step * tau
        if t >= 1 - 1e-3:
            break
        weight = (6 * t**2 - 6 * t + 2) / (1 - (2 * t**3 - 3 * t**2 + 2 * t) + 1e-6) * tau
        with torch.no_grad():
            output = model(torch.tensor([row]))
        texts, flags, gaps = [], [], []
        for p, token in enumerate(row):
            address = [torch.tensor(value) for value in (seed, 0, p, step)]
            first, second, third, _ = (((int(w) >> 9) + 0.5) / 2**23 for w in philox.words(*address, 1))
            sub, delete, insert = (float(output[f"{kind}_rate_hat"][0, p]) for kind in ("sub", "del", "ins"))
            changes = free[p] and first < min(weight * (sub + delete), 1 - 1e-6)
            if not (changes and second < delete / (sub + delete)):
                texts.append(int(output.sub_logits[0, p].argmax()) if changes else token)
                flags.append(free[p])
                gaps.append(opens[p])
            if opens[p] and third < min(weight * insert, 1 - 1e-6):
                texts.append(int(output.ins_logits[0, p].argmax()))
                flags.append(True)
                gaps.append(True)
        row, free, opens = texts, flags, gaps
    return row


@pytest.mark.parametrize("backbone", ["modernbert", "dream"])
def test_a_batch_is_what_a_plain_loop_makes_of_each_text(backbone):
    """Rows of different length that grow and shrink, alone and in a batch."""
    torch.manual_seed(0)
    model = (model_of() if backbone == "modernbert" else EditFlowModel.from_backbone(load("dream"))).eval()
    sampler = EditFlowSampler(model, TOKENS, CubicKappaScheduler())
    options = dict(mask_length=6, tau=0.05, min_edits=0.0, seed=11, return_dict=True)
    output = sampler.sample(PROMPTS, **options)
    lengths = set()
    for number, prompt in enumerate(PROMPTS):
        added = prompt[:1] != [BOS]
        row = [BOS] * added + prompt + [MASK_ID] * 6
        want = plain_sample(model, row, [False] * (added + len(prompt)) + [True] * 6, 11 + number, 0.05)[added:]
        got = output.sequences[number].tolist()
        assert got == want + [TOKENS.eos_token_id] * (len(got) - len(want))
        assert want[: len(prompt)] == prompt
        alone = sampler.sample([prompt], **options | dict(seed=[11 + number])).sequences[0].tolist()
        assert alone == want
        lengths.add(len(want) - len(prompt))
    assert len(lengths) > 1 or lengths != {6}
    assert torch.equal(output.histories[-1], output.sequences)


def test_temperature_and_seeds():
    sampler = EditFlowSampler(model_of().eval(), TOKENS)
    options = dict(mask_length=4, tau=0.1, temperature=1.0)
    first, again, other = (sampler.sample(PROMPTS, **options, seed=seed).tolist() for seed in (3, 3, 4))
    assert first == again != other
    suppressed = sampler.sample(PROMPTS, **options, seed=3, suppress_tokens=list(range(5, 131)))
    for row, prompt in zip(suppressed.tolist(), PROMPTS, strict=True):
        assert max(row[len(prompt) :]) < 5


class Constant(nn.Module):
    """The same rates everywhere; the likeliest token is 7 to substitute and 8 to insert."""

    def __init__(self, substitute: float, delete: float, insert: float):
        super().__init__()
        self.given, self.config = torch.tensor([substitute, delete, insert]), SimpleNamespace(right_shift=False)
        self.sub_logits, self.ins_logits = nn.Linear(2, 20), nn.Linear(2, 20)
        for head, token in ((self.sub_logits, 7), (self.ins_logits, 8)):
            nn.init.zeros_(head.weight)
            head.bias.data = 9.0 * nn.functional.one_hot(torch.tensor(token), 20)

    def hidden_states(self, tokens, mask):
        return torch.ones(*tokens.shape, 2)

    def rates(self, hidden):
        return self.given.expand(*hidden.shape[:2], 3)


def settings(weights: list[float], **options) -> EditLoopSettings:
    defaults = dict(temperature=0.0, min_edits=0.0, limit=None, suppress=None, apart=False, impl="auto")
    return EditLoopSettings(weights, **defaults | options)


def batch_of(rows: int, row: list[int], prompt: int) -> EditedTexts:
    one = texts_of(row, prompt)
    return EditedTexts(*(part.expand(rows, *part.shape[1:]).clone() for part in one))


@pytest.mark.parametrize("kind", range(3))
def test_probability_of_an_edit(kind):
    """Of 4000 texts with one edit that is possible, so many have it in some step; within 5 standard deviations."""
    rates, weights, n = [0.0, 0.0, 0.0], [0.1, 0.3, 0.2], 4000
    rates[kind] = 0.8
    texts = batch_of(n, [5, 6], prompt=1)
    texts = texts._replace(open=torch.zeros_like(texts.open))
    if kind == 2:
        texts = texts._replace(open=torch.tensor([[True, False]]).repeat(n, 1))
    after = EditLoop(Constant(*rates), settings(weights[:1] if kind == 2 else weights)).run(texts, torch.arange(n))
    steps = weights[:1] if kind == 2 else weights
    never = math.prod(1 - 0.8 * weight for weight in steps)
    untouched = int((after.tokens[:, :2] == torch.tensor([5, 6])).all(1).logical_and(after.lengths == 2).sum())
    assert abs(untouched - n * never) < 5 * math.sqrt(n * never * (1 - never))


def test_shares_of_substitutions_and_deletions():
    n, texts = 4000, batch_of(4000, [5, 6], prompt=1)
    edits = draw_edits(allowed(torch.tensor([3e8, 1e8, 0.0]).expand(n, 2, 3), texts), 1.0, torch.arange(n), step=4)
    deleted = int(edits.delete.sum())
    assert int((edits.substitute | edits.delete)[:, 1].sum()) >= n - 1
    assert abs(deleted - n / 4) < 5 * math.sqrt(n * 3 / 16)


def test_the_prompt_is_never_edited():
    model, weights = Constant(0.7, 0.9, 0.8), [0.5] * 12
    after = EditLoop(model, settings(weights, limit=40)).run(batch_of(50, [5, 6, 9, 3, 3, 3], 3), torch.arange(50))
    assert after.tokens[:, :3].tolist() == [[5, 6, 9]] * 50
    assert len(set(after.lengths.tolist())) > 5 and int(after.lengths.min()) >= 3 and int(after.lengths.max()) <= 40


def test_a_token_may_be_deleted_and_another_inserted_behind_it():
    yes, no = torch.tensor([[False, True, False]]), torch.zeros(1, 3, dtype=torch.bool)
    edits = StepEdits(no, yes, yes)
    tokens = torch.full((1, 3), 9)
    after = leap(texts_of([4, 5, 6], 1), edits, tokens, tokens, limit=None)
    assert after.tokens.tolist() == [[4, 9, 6]]


def test_growth_has_a_limit():
    """Insertions are left out from the right, deletions make room for them."""
    every, no = torch.tensor([[True] * 4]), torch.zeros(1, 4, dtype=torch.bool)
    inserted = torch.tensor([[10, 11, 12, 13]])
    after = leap(texts_of([4, 5, 6, 7], 1), StepEdits(no, no, every), inserted, inserted, limit=6)
    assert after.tokens.tolist() == [[4, 10, 5, 11, 6, 7]]
    delete = torch.tensor([[False, False, False, True]])
    after = leap(texts_of([4, 5, 6, 7], 1), StepEdits(no, delete, every), inserted, inserted, limit=5)
    assert after.tokens.tolist() == [[4, 10, 5, 11, 6]]


def test_the_model_runs_on_changed_texts_only():
    loop = EditLoop(Constant(0.01, 0.0, 0.0), settings([0.1] * 50))
    loop.run(batch_of(20, [5, 6], 1), torch.arange(20))
    assert loop.steps == 50 and loop.forwards < 25 and min(loop.row_forwards) == 1
    assert sum(loop.row_forwards) < 20 + 10  # 20 texts with 0.05 edits expected each


def test_texts_without_rates_are_finished():
    for rates, least in (((0.0, 0.0, 0.0), 0.0), ((1e-6, 1e-6, 1e-6), 1e-3)):
        loop = EditLoop(Constant(*rates), settings([0.1] * 50, min_edits=least))
        after = loop.run(batch_of(3, [5, 6, 7], 1), torch.arange(3))
        assert (loop.steps, loop.forwards) == (0, 1) and after.tokens.tolist() == [[5, 6, 7]] * 3


def test_infill_edits_gaps_only():
    """What is given stays in its order, with something else in place of the masks alone."""
    sampler = EditFlowSampler(model_of().eval(), TOKENS)
    given = [BOS, 20, 21, MASK_ID, MASK_ID, 22, 23, MASK_ID, 24]
    output = sampler.infill([given, [30, MASK_ID, 31]], tau=0.05, seed=0, return_dict=True)
    first = output.sequences[0].tolist()
    parts = ([BOS, 20, 21], [22, 23], [24])
    places = [next(i for i in range(len(first)) if first[i : i + len(part)] == part) for part in parts]
    assert places[0] == 0 and places == sorted(places)
    end = [token for token in first[places[2] + 1 :] if token != TOKENS.eos_token_id]
    assert end == []  # nothing is inserted behind the last given token
    assert [token for token in output.sequences[1].tolist() if token in (30, 31)] == [30, 31]
    assert not any(MASK_ID in row for row in output.sequences.tolist()) or output.stats.masks_left > 0


def test_histories_and_steps():
    sampler, seen = EditFlowSampler(model_of().eval(), TOKENS), []
    output = sampler.sample(PROMPTS, mask_length=4, tau=0.1, seed=2, return_dict=True, on_step=seen.append)
    assert output.histories[0].tolist()[0][:4] == PROMPTS[0] and MASK_ID in output.histories[0].tolist()[0]
    assert len(seen) == len(output.histories) - 1
    assert all(torch.equal(step.canvas, history) for step, history in zip(seen, output.histories[1:], strict=True))
    assert all(step.steps == 10 and step.step < 10 for step in seen)
    stats = output.stats
    assert 1 <= stats.forwards <= len(seen) + 1 and max(stats.row_forwards) <= stats.forwards


def test_an_adapter_acts():
    pytest.importorskip("peft")
    model = load_peft(model_of(), ModelArguments(model_name_or_path="toy", lora=True, r=2)).eval()
    options = dict(mask_length=4, tau=0.1, seed=2)
    before = EditFlowSampler(model, TOKENS).sample(PROMPTS, **options)
    assert torch.equal(before, EditFlowSampler(model_of().eval(), TOKENS).sample(PROMPTS, **options))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "sub_logits.modules_to_save" in name and p.dim() == 1)[
            50
        ] += 99
    assert 50 in EditFlowSampler(model, TOKENS).sample(PROMPTS, **options)


def test_the_scheduler_that_the_model_was_trained_with(tmp_path):
    model = model_of()
    assert isinstance(EditFlowSampler(model, TOKENS).scheduler, LinearKappaScheduler)
    trainer_of(tmp_path, model, [dict(input_ids=[20])], scheduler=CubicKappaScheduler(a=2.0))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert EditFlowSampler(loaded, TOKENS).scheduler == CubicKappaScheduler(a=2.0)
    assert EditFlowSampler(loaded, TOKENS, CosineKappaScheduler()).scheduler == CosineKappaScheduler()


def test_what_is_refused():
    sampler = EditFlowSampler(model_of().eval(), TOKENS)
    for wrong, rule in (
        (dict(tau=0.0), r"tau must lie in \[1e-6, 1\], got 0.0"),
        (dict(tau=1e-9), r"tau must lie in \[1e-6, 1\], got 1e-09"),
        (dict(time_epsilon=1.0), "time_epsilon must lie between"),
        (dict(mask_length=-1), "mask_length must be at least 0"),
        (dict(max_w=0.0), "max_w must be above 0"),
        (dict(min_edits=-1.0), "min_edits must be finite and at least 0"),
        (dict(max_length=5), "must have at most 5 tokens, got 135"),
    ):
        with pytest.raises(ValueError, match=rule):
            sampler.sample(PROMPTS, **wrong)
    with pytest.raises(TypeError, match="EditFlowSamplerConfig has no setting block_size"):
        sampler.sample(PROMPTS, block_size=3)
    with pytest.raises(ValueError, match="must not hold the mask token, got one in row 0: infill"):
        sampler.sample([[20, MASK_ID]])
    with pytest.raises(ValueError, match="must be an EditFlowModel"):
        EditFlowSampler(tiny("modernbert"), TOKENS)
    with pytest.raises(TypeError, match="must be a BaseKappaScheduler"):
        EditFlowSampler(model_of(), TOKENS, LinearAlphaScheduler())
    no_bos = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=2)
    with pytest.raises(ValueError, match="row 0 must begin with a token other than a mask"):
        EditFlowSampler(model_of(), no_bos).infill([[MASK_ID, 20]])
    assert EditFlowSamplerConfig(mask_length=9).max_new_tokens == 9
    assert sampler.sample([], seed=0).shape == (0, 0)


@pytest.mark.parametrize("x0", ["masks[length:3]", "empty"])
def test_a_toy_that_was_trained_on_one_pair_samples_it(x0, tmp_path):
    torch.manual_seed(0)
    model, answer = model_of(), [60, 61, 62, 63, 64]
    sample, pairs = dict(input_ids=[BOS, 20, *answer], prompt_len=2), EditFlowCollator(TOKENS, x0)

    def collate(samples):
        """Every copy of the sample has draws of its own."""
        return pairs(samples) | dict(seeds=torch.randint(2**62, (len(samples),)))

    options = dict(per_device_train_batch_size=32, max_steps=100, learning_rate=1e-2, logging_steps=100)
    trainer_of(
        tmp_path, model, [sample] * 256, data_collator=collate, scheduler=LinearKappaScheduler(), **options
    ).train()
    sampler = EditFlowSampler(model.eval(), TOKENS)
    found = sampler.sample([[BOS, 20]] * 40, mask_length=0 if x0 == "empty" else 3, seed=1, max_length=30)
    right = sum(row == [BOS, 20, *answer] for row in map(trimmed, found.tolist()))
    assert right >= 30, found.tolist()


def trimmed(row: list[int]) -> list[int]:
    while row and row[-1] == TOKENS.eos_token_id:
        row = row[:-1]
    return row


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_rates_that_are_not_finite_raise(wrong):
    model = model_of()
    with torch.no_grad():
        model.rate_heads.bias[0] = wrong
    with pytest.raises(RuntimeError, match="the rates must be finite, got others in row 0, step 0"):
        EditFlowSampler(model, TOKENS).sample([PROMPTS[0]], mask_length=4, seed=0)
