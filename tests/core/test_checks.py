"""What is known of a run before its first step: what the model sees, and whether samples fit it."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from dllm.core.trainers import BD3LMTrainer, MDLMTrainer
from dllm.core.trainers.base.checks import check_padding, longest_sample
from dllm.core.trainers.bd3lm import AppendEOSBlockWrapper
from dllm.core.trainers.block_mask import BlockInputs, check_sees_blocks
from dllm.data.collators import NoAttentionMaskWrapper
from dllm.data.packing import PackingCollator, pack_samples
from dllm.demo.shipped import SHIPPED
from dllm.models import bidirectional
from tests.blind_models import Deaf, Maskless, causal_llama
from tests.core.runs import Loose, LooseModern, Strict, Whole, config_of, losses, model_of, samples_of, trainer_of
from tests.models import FIRST_WORD, MASK_ID, PAD_ID, POSITIONS, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = [{"input_ids": [10 + i, 8, 9, 11], "labels": [10 + i, 8, 9, 11]} for i in range(8)]


def of_length(*lengths):
    return [{"input_ids": [FIRST_WORD + i % 90 for i in range(length)]} for length in lengths]


def llama():
    model = causal_llama(vocab_size=131)
    model.config.mask_token_id = MASK_ID
    return model


def watched(model):
    shapes = []
    model.register_forward_pre_hook(lambda _, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True)
    return shapes


def test_a_causal_model_is_not_trained(tmp_path):
    model, rule = llama(), "positions of LlamaForCausalLM do not see those on their right: make a causal model bidirect"
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = trainer_of(tmp_path, model, EVEN, max_steps=2, eval_dataset=EVEN)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=rule):
            run()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    bidirectional(model)
    trainer.train()
    assert len(losses(trainer)) == 2


def test_blocks_make_a_causal_model_see_what_it_must(tmp_path):
    trainer = trainer_of(tmp_path, llama(), samples_of(8), kind=BD3LMTrainer, block_size=2, max_steps=2)
    trainer.train()
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize(
    "kind, why",
    [(Deaf, "padding is seen in Deaf, whatever attention_mask says"), (Maskless, "Maskless takes no atten")],
)
def test_padded_batches_need_a_mask_that_acts(kind, why, tmp_path):
    rule = f"rows of a batch must be of one length, because {why}.*cut or fill samples to one length, or set per_device"
    with pytest.raises(ValueError, match=rule):
        trainer_of(tmp_path, model_of(kind), samples_of(8), max_steps=2).train()
    trainer = trainer_of(tmp_path, model_of(kind), EVEN, max_steps=2)
    trainer.train()
    expected = trainer_of(tmp_path, model_of(Loose), EVEN, max_steps=2)
    expected.train()
    assert losses(trainer) == losses(expected)
    with pytest.raises(ValueError, match=rule):
        trainer.evaluate(samples_of(8))
    one_by_one = trainer_of(tmp_path, model_of(kind), samples_of(8), max_steps=2, per_device_train_batch_size=1)
    one_by_one.train()
    assert len(losses(one_by_one)) == 2


def test_a_model_is_tried_once_a_trainer(tmp_path):
    """In evaluation mode, drawing no number: what dropout draws in the run is what it draws without."""
    model = model_of(Strict, dropout=0.3)
    shapes = watched(model)
    trainer = trainer_of(tmp_path, model, samples_of(8), max_steps=3, eval_dataset=samples_of(8))
    trainer.train()
    trainer.evaluate()
    assert shapes.count((5, 4)) == 2 and shapes.count((1, 3)) == 1
    untried = trainer_of(tmp_path, model_of(Strict, dropout=0.3), samples_of(8), max_steps=3)
    untried._probe_model = lambda *_: None
    untried.train()
    assert losses(trainer) == losses(untried)


def test_every_rank_tries_whatever_one_has_tried_alone():
    model = model_of(Loose)
    shapes = watched(model)
    for _ in range(2):
        assert check_padding(model, torch.device("cpu")) is None
    assert shapes.count((5, 4)) == 4 and shapes.count((1, 3)) == 2


class Rounding(Whole):
    """Computes in bfloat16, each half of a row with another rounding, and hands out float32."""

    def forward(self, **given):
        out = super().forward(**given)
        logits = out.logits.bfloat16()
        clean = logits.chunk(2, dim=1)[1]
        clean.copy_(torch.nextafter(clean, torch.full_like(clean, 9.0)))
        out.logits = logits.float()
        return out


def test_blocks_are_tried_in_the_dtype_that_a_model_computes_in():
    model = model_of(Rounding)
    check_sees_blocks(model, BlockInputs.of(model))


class Unpacking(Whole):
    """Takes the mask that keeps samples apart, and ignores it."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **given):
        return super().forward(input_ids=input_ids, position_ids=position_ids, **given)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_are_kept_apart(attention, tmp_path):
    rows = pack_samples({"input_ids": [sample["input_ids"] for sample in samples_of(16)]}, seq_length=24)
    samples = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    for kind in (Whole, Unpacking):
        model = model_of(kind, attn_implementation=attention)
        packing = PackingCollator(model, PAD_ID)
        trainer = MDLMTrainer(
            config_of(tmp_path, max_steps=1), model=model, train_dataset=samples, data_collator=packing
        )
        if kind is Whole:
            trainer.train()
        else:
            with pytest.raises(ValueError, match="must not see each other, and in Unpacking they do, whatever atten"):
                trainer.train()


@pytest.mark.parametrize("words, columns", [(MASK_ID + 1, 2), (MASK_ID + 1, 3), (MASK_ID + 2, 1), (MASK_ID + 1, 16)])
def test_few_words_and_positions(words, columns, tmp_path):
    """Whoever tries a model asks for no token and no position that it has not."""
    samples = [{"input_ids": [i % 3] * columns, "labels": [i % 3] * columns} for i in range(4)]
    for kind in (MDLMTrainer, BD3LMTrainer)[: 1 + columns // 16]:
        model = tiny("bert", vocab_size=words, max_position_embeddings=columns, pad_token_id=None)
        model.config.mask_token_id = MASK_ID
        trainer = trainer_of(tmp_path, model, samples, kind=kind, max_steps=1)
        trainer.train()
        assert len(losses(trainer)) == 1


# positions


def trainer_with(tmp_path, model, samples, collator=None, kind=MDLMTrainer, **options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    if callable(collator):
        collator = collator(tokenizer)
    evaluated = options.pop("eval_dataset", None)
    config = config_of(tmp_path, max_steps=2, per_device_train_batch_size=2, **options)
    given = dict(train_dataset=samples, eval_dataset=evaluated, data_collator=collator)
    return kind(config, model=model, tokenizer=tokenizer, **given)


COLLATORS = {
    "its own": None,
    "of transformers": lambda tokenizer: DataCollatorForSeq2Seq(tokenizer),
    "wrapped": lambda tokenizer: NoAttentionMaskWrapper(DataCollatorForSeq2Seq(tokenizer)),
}


@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset", "eval_dataset['b']"])
@pytest.mark.parametrize("collator", COLLATORS)
def test_the_longest_sample_must_fit(collator, where, tmp_path):
    """One sample in many, told before any step."""
    short, long = of_length(*[5] * 30), of_length(*[5] * 20, POSITIONS + 1, *[5] * 9)
    data = {"train_dataset": (long, short), "eval_dataset": (short, long), "eval_dataset['b']": (short, {"b": long})}
    model = model_of(Loose)
    shapes = watched(model)
    trainer = trainer_with(tmp_path, model, data[where][0], COLLATORS[collator], eval_dataset=data[where][1])
    with pytest.raises(ValueError) as error:
        trainer.train()
    assert str(error.value) == (
        f"the longest sample of {where} must fit the model's {POSITIONS} positions, got {POSITIONS + 1}: set max_length"
    )
    assert not shapes


def test_samples_of_any_kind():
    datasets = pytest.importorskip("datasets")
    rows = of_length(3, 9, 4)
    table = datasets.Dataset.from_list([row | {"text": "x"} for row in rows])
    assert longest_sample(rows) == longest_sample(table) == 9
    assert longest_sample(table.select([0, 2])) == 4 and longest_sample(table.select([])) == longest_sample([]) == 0
    for unknown in (table.to_iterable_dataset(), table.remove_columns("input_ids"), [{"text": "x"}], None, iter(rows)):
        assert longest_sample(unknown) is None


def test_a_collator_that_cuts_is_left_to_do_so(tmp_path):
    def cuts(tokenizer):
        pad = DataCollatorForSeq2Seq(tokenizer)
        return lambda samples: pad([{"input_ids": sample["input_ids"][:8]} for sample in samples])

    trainer_with(tmp_path, model_of(Loose), of_length(*[POSITIONS + 1] * 4), cuts).train()


def test_a_collator_that_lengthens_is_told_in_its_batch(tmp_path):
    model = model_of(Loose)
    shapes = watched(model)
    longer = lambda tokenizer: AppendEOSBlockWrapper(DataCollatorForSeq2Seq(tokenizer), 7)  # noqa: E731
    trainer = trainer_with(tmp_path, model, of_length(*[POSITIONS - 1] * 4), longer)
    with pytest.raises(
        ValueError, match=f"a row of a batch must fit the model's {POSITIONS} positions, got 98: set max_length"
    ):
        trainer.train()
    assert not shapes


def test_as_many_tokens_as_positions(tmp_path):
    for kind in (MDLMTrainer, BD3LMTrainer):
        samples = of_length(POSITIONS, 3, POSITIONS, 7)
        trainer = trainer_of(tmp_path, model_of(Whole), [s | {"labels": s["input_ids"]} for s in samples], kind=kind)
        trainer.train()


@pytest.mark.parametrize("kind", [MDLMTrainer, BD3LMTrainer])
def test_beyond_what_rotary_positions_were_made_for_there_is_one_warning(kind, tmp_path, caplog):
    model = llama() if kind is BD3LMTrainer else model_of(LooseModern, max_position_embeddings=8)
    model.config.max_position_embeddings = 8
    samples = [sample | {"labels": sample["input_ids"]} for sample in of_length(*[8] * 4, *[12] * 8)]
    options = dict(num_train_epochs=2, eval_dataset=samples) | ({"block_size": 4} if kind is BD3LMTrainer else {})
    trainer = trainer_of(tmp_path, model, samples[:4], kind=kind, **options)
    trainer.train()
    assert not [record for record in caplog.records if "longer" in record.message]
    trainer_of(tmp_path, model, samples, kind=kind, **options).train()
    trainer.evaluate()
    (said,) = [record.message for record in caplog.records if "longer" in record.message]
    assert said.startswith("rows of 12 tokens are longer than the 8 that")
