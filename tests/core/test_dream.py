"""DreamTrainer: the weights of CART, the shift, BOS, and the collator that cuts answers."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast

from dllm.core.trainers import DreamTrainer, DreamTrainerConfig
from dllm.core.trainers.cart import cart_p, cart_weights
from dllm.data.cutoff import DreamSFTCollator, cut_answers
from dllm.pipelines import dream
from tests.core import test_mdlm as mdlm
from tests.core.reference import Objective, cart
from tests.core.runs import Gradients, losses, model_of, samples_of, trainer_of
from tests.families.toys import load
from tests.models import FIRST_WORD

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = json.loads((Path(__file__).parent / "data" / "dream.json").read_text())
CART = "cart[geo_p:0.3]"


@pytest.mark.parametrize("fact", FACTS["cart"], ids=lambda fact: f"{len(fact['masked'][0])} tokens, p {fact['p']}")
def test_weights_are_those_of_dream(fact):
    """Float32 sums of the published program, in another order."""
    found = cart_weights(torch.tensor(fact["masked"]).bool(), fact["p"])
    assert torch.allclose(found, torch.tensor(fact["weights"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("p", [1e-3, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("length", [1, 2, 7, 300])
def test_weights_are_the_sum_over_all_pairs(length, p):
    masked = torch.rand(3, length, generator=torch.Generator().manual_seed(length)) < torch.tensor([[0.1], [0.5], [1]])
    found = cart_weights(masked, p)
    for row in range(3):
        places = masked[row].nonzero().flatten().tolist()
        exact = torch.tensor(cart(length, places, p), dtype=torch.float64)
        assert torch.equal(found[row, places], exact.float()) or torch.allclose(
            found[row, places].double(), exact, rtol=2**-23, atol=0
        )
    assert not found[~masked].any()
    assert not found[2].any()  # nothing is visible


def test_one_visible_token_at_a_distance():
    masked = torch.ones(1, 9, dtype=torch.bool)
    masked[0, 2] = False
    expected = [0.15 * 0.7 ** (abs(i - 2) - 1) if i != 2 else 0 for i in range(9)]
    assert cart_weights(masked, 0.3)[0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "wrong", ["cart", "cart[geo_p:]", "cart[geo_p:.x]", "cart[geo_p:0]", "cart[geo_p:1.5]", "cart[p:0.3]"]
)
def test_a_weight_type_that_cannot_be_read(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"loss_weight_type must be like cart\[geo_p:0.3\]|p of CART must lie in"):
        DreamTrainerConfig(output_dir=str(tmp_path), report_to="none", loss_weight_type=wrong)


def test_other_weight_types(tmp_path):
    assert cart_p("cart[geo_p:1e-2]") == 0.01
    with pytest.raises(ValueError, match=r"must be one of cart\[geo_p:0.3\], scheduler, uniform, got 'focal'"):
        DreamTrainerConfig(output_dir=str(tmp_path), report_to="none", loss_weight_type="focal")
    with pytest.raises(ValueError, match="right_shift_logits must be True"):
        DreamTrainerConfig(output_dir=str(tmp_path), report_to="none", right_shift_logits=False)


def prompted(count: int) -> list[dict[str, list[int]]]:
    """Samples whose first token has no label, so that no BOS is needed."""
    return [{"input_ids": [7, *s["input_ids"]], "labels": [-100, *s["labels"]]} for s in samples_of(count)]


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
@pytest.mark.parametrize("weight", [CART, "cart[geo_p:0.9]", "scheduler"])
@pytest.mark.covering(1)
def test_accumulated_forwards_are_one_batch(norm, weight, tmp_path):
    """Loss and gradients against plain PyTorch. Rows are not padded, as padding is visible to CART."""
    model, watch, objective = model_of(), Gradients(), Objective(norm=norm, weight=weight, right_shift=True)
    samples = [s for s in prompted(40) if len(s["input_ids"]) == 9][:4]
    before = copy.deepcopy(model)
    options = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1)
    trainer = trainer_of(tmp_path, model, samples, objective, DreamTrainer, callbacks=[watch], **options)
    trainer.train()
    mdlm.check(trainer, watch.seen, before, samples, objective)


def test_padding_is_visible(tmp_path):
    """The weights of a padded row are those of the row with its padding."""
    model, objective = model_of(), Objective(weight=CART, right_shift=True)
    short, long = ({"input_ids": [7, *range(20, n)], "labels": [-100, *range(20, n)]} for n in (24, 29))
    options = dict(per_device_train_batch_size=2, max_steps=1)
    collator = trainer_of(tmp_path, model, [short, long], objective, DreamTrainer, **options)._make_collator()
    batch = collator([short, long])
    masked = torch.zeros(2, 10, dtype=torch.bool)
    rows, corruption = batch["corruption"]["rows"] + 1, batch["corruption"]
    masked.view(-1)[rows] = True
    assert masked[0].any() and masked[1].any()
    assert torch.equal(cart_weights(masked, 0.3).view(-1)[rows], corruption["weight"])


class OwnWeights(DreamTrainer):
    """0.1's signature."""

    def _compute_loss_weights(self, t, inputs, masked_mask, *args, **kwargs):
        return super()._compute_loss_weights(t=t, inputs=inputs, masked_mask=masked_mask) * 3.0


def test_a_subclass_with_its_own_weights(tmp_path):
    found = []
    for kind in (OwnWeights, DreamTrainer):
        watch, objective = Gradients(), Objective(weight=CART, right_shift=True)
        options = dict(per_device_train_batch_size=4, max_steps=1)
        trainer_of(
            tmp_path / kind.__name__, model_of(), prompted(4), objective, kind, callbacks=[watch], **options
        ).train()
        found.append(watch.seen[0])
    assert torch.allclose(found[0], 3 * found[1], rtol=0, atol=100 * 2**-23 * float(found[0].abs().max()))


def test_bos_comes_before_a_first_token_with_a_label(tmp_path):
    model, objective = model_of(), Objective(weight=CART, right_shift=True)
    trainer = trainer_of(tmp_path, model, samples_of(4), objective, DreamTrainer, max_steps=1)
    everything = [{"input_ids": [20, 21], "labels": [20, 21]}]
    with pytest.raises(ValueError, match="BOS must come before it, and the tokenizer has none"):
        trainer._make_collator()(everything)
    collator = trainer._make_collator()
    collator.bos_id = 9
    batch = collator.clean(everything)
    assert batch["input_ids"].tolist() == [[9, 20, 21]] and batch["labels"].tolist() == [[-100, 20, 21]]
    assert collator.clean(prompted(1))["input_ids"][0, 0] == 7


def test_a_row_of_masks_alone_weighs_nothing(tmp_path):
    """Loss 0, and no NaN."""
    model, objective = model_of(), Objective(weight="cart[geo_p:1.0]", right_shift=True, low=0.999)
    sample = {"input_ids": [7, 20, 21], "labels": [-100, 20, 21]}
    far = {"input_ids": [7, 20, 21, 22], "labels": [-100, 20, 21, 22]}
    batch = trainer_of(tmp_path, model, [sample], objective, DreamTrainer, max_steps=1)._make_collator()([far])
    assert batch["corruption"]["weight"].tolist() == [0.5]  # its neighbour alone, at p = 1
    trainer = trainer_of(tmp_path, model, [sample] * 4, objective, DreamTrainer, max_steps=1)
    trainer.train()
    assert losses(trainer)[0] >= 0


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_model_that_does_not_shift_is_shifted_after_one_warning(name, tmp_path, caplog):
    """The objective is defined on shifted logits; a model that is shifted by its configuration needs no warning."""
    objective = Objective(weight=CART, right_shift=True)
    trainer = trainer_of(tmp_path, load(name), prompted(4), objective, DreamTrainer, max_steps=1)
    trainer.train()
    assert trainer._make_collator().right_shift
    assert caplog.text.count("and DreamTrainer trains it so") == (name == "llada")


def test_one_sample_and_one_without_labels(tmp_path):
    objective, watch = Objective(weight=CART, right_shift=True), Gradients()
    samples = [*prompted(1), {"input_ids": [7, 20], "labels": [-100, -100]}]
    options = dict(per_device_train_batch_size=1, num_train_epochs=1)
    trainer = trainer_of(tmp_path, model_of(), samples, objective, DreamTrainer, callbacks=[watch], **options)
    trainer.train()
    assert sorted(loss > 0 for loss in losses(trainer)) == [False, True]
    assert sorted(bool(step.any()) for step in watch.seen) == [False, True]
    assert all(step.isfinite().all() for step in watch.seen)


def test_names_of_dllm_0_1():
    assert dream.DreamTrainer is DreamTrainer and DreamTrainer.DreamConfig is DreamTrainerConfig
    assert dream.utils.DreamSFTCollator is DreamSFTCollator


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(60))]
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(words))
    return BertTokenizerFast(vocab_file=str(file), pad_token="[PAD]")


def conversations(*lengths: tuple[int, int], seed: int = 0) -> list[dict]:
    """Of (prompt, answer) lengths."""
    draw, found = random.Random(seed), []
    for prompt, answer in lengths:
        tokens = [draw.randrange(FIRST_WORD, 60) for _ in range(prompt + answer)]
        found.append({"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:], "prompt_len": prompt})
    return found


@pytest.mark.parametrize("fact", FACTS["perbatch_cutoff"])
def test_answers_are_cut_as_by_dream(fact):
    assert cut_answers(fact["rows"], fact["kept"]) == fact["after"]


def test_one_answer_length_is_drawn_for_a_batch(tokenizer):
    collate, widths = DreamSFTCollator(tokenizer, label_pad_token_id=tokenizer.pad_token_id), set()
    for seed in range(30):
        samples = conversations((3, 4), (1, 9), (6, 2), seed=seed)
        batch = collate(samples)
        assert torch.equal(collate(samples)["input_ids"], batch["input_ids"])
        assert set(batch) == {"input_ids", "labels", "attention_mask"}
        for row, sample in enumerate(samples):
            assert (
                batch["input_ids"][row, : sample["prompt_len"]].tolist() == sample["input_ids"][: sample["prompt_len"]]
            )
        widths.add(batch["input_ids"].shape[1])
        assert bool(batch["attention_mask"].all())  # padding is trained, so it is attended to
        assert bool((batch["labels"][batch["input_ids"] == tokenizer.pad_token_id] == tokenizer.pad_token_id).all())
    assert widths == {8, 10, 7 + 1}  # answers of at most 2, 4 and 9: 6 + 2, 3 + 4 or 6 + 2, 1 + 9


def test_padding_without_labels_stays_hidden(tokenizer):
    batch = DreamSFTCollator(tokenizer, perbatch_cutoff=False)(conversations((1, 2), (1, 6)))
    assert batch["attention_mask"].sum(1).tolist() == [3, 7] and batch["labels"][0].tolist()[3:] == [-100] * 4


def test_a_share_of_batches_loses_its_last_columns(tokenizer):
    samples_by_seed = [conversations((3, 4), (1, 9), (6, 5), seed=seed) for seed in range(200)]
    always = DreamSFTCollator(tokenizer, perbatch_cutoff=False, resp_cutoff_ratio=1.0)
    assert {always(samples)["input_ids"].shape[1] for samples in samples_by_seed} == {8, 9, 10}  # 11 - (1 ... 3)
    half = DreamSFTCollator(tokenizer, perbatch_cutoff=False, resp_cutoff_ratio=0.5)
    uncut = sum(half(samples)["input_ids"].shape[1] == 11 for samples in samples_by_seed)
    assert 65 <= uncut <= 135  # 100 +- 5 standard deviations


def test_what_the_collator_refuses(tokenizer):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 2"):
        DreamSFTCollator(tokenizer, perbatch_cutoff=False, resp_cutoff_ratio=2)
    with pytest.raises(ValueError, match="must be 0 beside perbatch_cutoff"):
        DreamSFTCollator(tokenizer, resp_cutoff_ratio=0.1)
    collate = DreamSFTCollator(tokenizer)
    with pytest.raises(ValueError, match="sample 0 of a batch must have prompt_len"):
        collate([{"input_ids": [5, 6], "labels": [5, 6]}])
    with pytest.raises(ValueError, match="must have an answer behind its prompt of 2 tokens, got 2"):
        collate([{"input_ids": [5, 6], "labels": [5, 6], "prompt_len": 2}])
    for length in (-1, "1", 1.0, True):
        with pytest.raises(ValueError, match=f"prompt_len .* must be a whole number of at least 0, got {length!r}"):
            collate([{"input_ids": [5, 6], "labels": [5, 6], "prompt_len": length}])
