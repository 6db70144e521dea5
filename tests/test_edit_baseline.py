"""The published loss and sampler of Edit Flows that benchmarks measure against: published numbers, and ours."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks.baselines import edit_flows
from benchmarks.edit_toy import collator_draws, sampler_draws
from dllm.core.samplers import EditFlowSampler
from dllm.core.schedulers import LinearKappaScheduler, get_kappa_scheduler_class
from dllm.core.trainers import EditFlowCollator
from tests.core.edit_runs import TOKENS, model_of, plain_loss, prompted, trainer_of
from tests.core.reference import gradients
from tests.models import MASK_ID, PAD_ID

FACTS = json.loads((Path(__file__).parent / "core" / "data" / "editflow.json").read_text())

pytestmark = pytest.mark.usefixtures("one_thread")


def test_published_alignments_and_edits():
    for fact in FACTS["align"]:
        assert edit_flows.align(fact["x0"], fact["x1"]) == (fact["z0"], fact["z1"])
    for fact in FACTS["edits"]:
        assert [list(edit) for edit in edit_flows.edits_left(fact["zt"], fact["z1"])] == fact["edits"]


@pytest.mark.parametrize("fact", FACTS["loss"], ids=lambda fact: f"{fact['scheduler']} {fact['per_position']}")
def test_published_losses(fact):
    names = ("sub_rate_hat", "del_rate_hat", "ins_rate_hat", "sub_logits", "ins_logits")
    output = dict(zip(names, map(torch.tensor, fact["rates"] + fact["logits"]), strict=True))

    def model(input_ids, attention_mask):
        assert input_ids.tolist() == fact["input_ids"] and attention_mask.tolist() == fact["mask"]
        return output

    found = edit_flows.loss(
        model,
        dict(x0_ids=fact["x0"], x1_ids=fact["x1"]),
        scheduler=get_kappa_scheduler_class(fact["scheduler"])(),
        pad_id=0,
        normalize_per_position=fact["per_position"],
        draws=edit_flows.Draws(torch.tensor(fact["draws"][0])[:, 0], [torch.tensor(u) for u in fact["draws"][1:]]),
    )
    assert found.item() == pytest.approx(fact["loss"], rel=3e-6)


@pytest.mark.parametrize("fact", FACTS["leap"], ids=lambda fact: f"prompt of {fact['prompt_len']}")
def test_published_steps(fact):
    output = {name: torch.tensor(part) for name, part in (fact["rates"] | fact["logits"]).items()}
    tokens, protected = torch.tensor(fact["x"]), 0 if fact["edit_prompt"] else fact["prompt_len"]
    after, changed = edit_flows.leap(tokens, output, 0.01, torch.rand(3, len(tokens)), protected)
    assert after.tolist() == fact["after"] and changed == fact["changed"]


@pytest.mark.parametrize("length", [3, 12], ids=lambda length: f"{length} masks")
def test_the_loss_is_ours(length, tmp_path):
    """On the same draws, with its gradient."""
    samples, spec = prompted(8), f"masks[length:{length}]"
    trainer = trainer_of(tmp_path, model_of(), samples, x0_sampler=spec, kappa_scheduler="linear")
    pairs = EditFlowCollator(TOKENS, spec)(samples)
    found = {}
    for dtype in (torch.float64, torch.float32):
        theirs, ours = (copy.deepcopy(model_of()).to(dtype) for _ in range(2))
        draws = collator_draws(pairs, trainer.args.data_seed or trainer.args.seed)
        published = edit_flows.loss(theirs, pairs, scheduler=LinearKappaScheduler(), pad_id=PAD_ID, draws=draws)
        published.backward()
        plain = plain_loss(ours, trainer, samples).mean()
        plain.backward()
        assert published.item() == pytest.approx(plain.item(), rel=1e-5)
        found[dtype] = torch.cat([part.flatten() for part in (gradients(theirs) - gradients(ours), gradients(ours))])
    half = len(found[torch.float64]) // 2
    assert float(found[torch.float64][:half].norm()) < 1e-5 * float(found[torch.float64][half:].norm())


def test_the_texts_are_ours():
    """With the same random numbers: texts that grow and shrink, batches and single texts."""
    model, prompts, seed = model_of().eval(), [[4, 20, 21], [4, 30], [4, 40, 41, 42]], 5
    sampler = EditFlowSampler(model, SimpleNamespace(**vars(TOKENS)), LinearKappaScheduler())
    texts = sampler.sample(prompts, mask_length=6, tau=0.05, min_edits=0.0, seed=seed)
    for row, prompt in enumerate(prompts):
        draws = sampler_draws(seed + row, steps=20, columns=64)

        def noise(step, n, draws=draws):
            return draws[step, :, :n]

        found = edit_flows.sample(model, prompt, mask_id=MASK_ID, mask_length=6, tau=0.05, noise=noise)
        ours = texts[row].tolist()
        assert ours == found.tokens.tolist() + [TOKENS.eos_token_id] * (len(ours) - len(found.tokens))
        assert found.steps == 20 and 0 < found.forwards <= 20


def test_temperature_and_reused_outputs():
    """Rates of 0 change nothing, so the model runs once; a high temperature takes other tokens than the likeliest."""
    model = model_of().eval()
    still = copy.deepcopy(model)
    with torch.no_grad():
        still.rate_heads.weight.zero_()
        still.rate_heads.bias.fill_(-1e9)
    found = edit_flows.sample(still, [4, 20], mask_id=MASK_ID, mask_length=3, tau=0.1)
    assert found.tokens.tolist() == [4, 20, MASK_ID, MASK_ID, MASK_ID] and (found.steps, found.forwards) == (10, 1)
    torch.manual_seed(0)
    hot = [edit_flows.sample(model, [4, 20], mask_id=MASK_ID, mask_length=8, temperature=9.0) for _ in range(2)]
    assert hot[0].tokens.tolist() != hot[1].tokens.tolist()


def test_logits_of_the_lm_head_that_nobody_reads():
    """They are those of all positions, are computed in each forward until the handle is removed, and change nothing."""
    model, shapes = model_of().eval(), []
    tokens = torch.tensor([[4, 20, 21]])
    with torch.no_grad(), Products(shapes):
        plain = model(tokens)
        before = len(shapes)
        handle = edit_flows.compute_unused_logits(model.backbone)
        found = model(tokens)
        handle.remove()
        assert shapes[before:].count((1, 3, 131)) == shapes[:before].count((1, 3, 131)) + 1 == 3
        assert torch.equal(found.sub_logits, plain.sub_logits)
        model(tokens)
    assert len(shapes) == 3 * before + 1


class Products(TorchFunctionMode):
    """Notes the shapes of what linear layers return."""

    def __init__(self, shapes: list):
        super().__init__()
        self.shapes = shapes

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear:
            self.shapes.append(tuple(result.shape))
        return result
