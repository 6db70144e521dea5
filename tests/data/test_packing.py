"""Several samples in a row."""

import importlib.metadata
import itertools

import pytest
import torch

from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.data.packing import PackingCollator, pack_samples
from dllm_kernels.testing import assert_model_no_worse
from tests.models import FAMILIES, PAD_ID, make_prompt, tiny

TRANSFORMERS_4 = importlib.metadata.version("transformers").startswith("4.")
LENGTHS = (9, 30, 4, 17, 1, 23, 30)  # beyond ModernBERT's window of 12 // 2, and within it
ROOM = 40


def samples_of(model) -> list[list[int]]:
    return [make_prompt(model, 1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def parts(positions) -> list[tuple[int, int, int]]:
    """(row, start, end) of every sample; of every token of padding, too."""
    starts = (positions == positions.min()).nonzero().tolist()
    ends = [s if r == row else positions.shape[1] for (row, _), (r, s) in itertools.pairwise([*starts, [-1, 0]])]
    return [(row, start, end) for (row, start), end in zip(starts, ends, strict=True)]


def rows_of(tokens, labels=None):
    columns = pack_samples({"input_ids": tokens} | ({"labels": labels} if labels else {}), seq_length=ROOM)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("room", [30, 31, 40, 114, 500])
def test_every_sample_is_in_one_row(room):
    tokens = [[100 * i + j for j in range(length)] for i, length in enumerate(LENGTHS)]
    packed = pack_samples({"input_ids": tokens}, seq_length=room)
    assert max(len(row) for row in packed["input_ids"]) <= room
    found = []
    for row, positions in zip(packed["input_ids"], packed["position_ids"], strict=True):
        starts = [i for i, position in enumerate(positions) if position == 0]
        found += [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]
        assert positions == [i - max(s for s in starts if s <= i) for i in range(len(row))]
    assert sorted(found) == tokens and packed["labels"] == packed["input_ids"]


def test_rows_are_full():
    """Best fit decreasing leaves no two rows that would fit into one."""
    widths = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = pack_samples({"input_ids": [[5] * width for width in widths]}, seq_length=64)["input_ids"]
    one, two = sorted(map(len, rows))[:2]
    assert one + two > 64 and len(rows) <= 1.05 * sum(widths) / 64 + 1


def test_labels_go_with_their_tokens():
    (row,) = rows_of([[5, 6], [7, 8, 9]], labels=[[-100, 6], [-100, -100, 9]])
    assert row["input_ids"] == [7, 8, 9, 5, 6] and row["labels"] == [-100, -100, 9, -100, 6]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_do_not_see_each_other(family, attention):
    """Logits of a packed sample are those of the sample alone: their error against float64 is at most twice that of
    the sample alone in float32."""
    model = tiny(family, attn_implementation=attention)
    if family == "modernbert" and TRANSFORMERS_4:
        with pytest.raises(ValueError, match="needs transformers 5"):
            PackingCollator(model, PAD_ID)
        return
    tokens = samples_of(model)
    batch = PackingCollator(model, PAD_ID, pad_to_multiple_of=8)(rows_of(tokens))
    del batch["labels"]
    places = [
        (row, start, end)
        for row, start, end in parts(batch["position_ids"])
        if batch["input_ids"][row, start:end].tolist() != [PAD_ID]  # RoBERTa alone counts padding differently
    ]
    assert sorted(batch["input_ids"][row, start:end].tolist() for row, start, end in places) == sorted(tokens)

    def alone(model):
        samples = (batch["input_ids"][row : row + 1, start:end] for row, start, end in places)
        return {"logits": torch.cat([model(input_ids=sample).logits[0] for sample in samples])}

    with torch.no_grad():
        packed = model(**batch).logits
        got = {"logits": torch.cat([packed[row, start:end] for row, start, end in places])}
        assert_model_no_worse(got, alone, model)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_training_on_packed_rows(family, tmp_path, one_thread):
    """The loss of packed rows is that of the same corrupted tokens, sample by sample."""
    if family == "modernbert" and TRANSFORMERS_4:
        pytest.skip("transformers 4 takes no mask of ModernBERT's layers")
    model = tiny(family)
    tokens = samples_of(model)
    options = dict(report_to="none", eval_strategy="no", save_strategy="no", use_cpu=True, bf16=False)
    config = MDLMConfig(output_dir=str(tmp_path), max_steps=2, disable_tqdm=True, loss_weight_type="uniform", **options)
    model.config.mask_token_id = 3
    trainer = MDLMTrainer(
        config, model=model, train_dataset=rows_of(tokens), data_collator=PackingCollator(model, PAD_ID)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model.eval(), dict(batch))
    found = batch["corruption"]
    expected, width = 0.0, batch["input_ids"].shape[1]
    for row, start, end in parts(batch["position_ids"]):
        logits = model(input_ids=batch["input_ids"][row : row + 1, start:end]).logits[0].double().log_softmax(-1)
        for at, target in zip(found["rows"].tolist(), found["targets"].tolist(), strict=True):
            if at // width == row and start <= at % width < end:
                expected = expected - logits[at % width - start, target] / found["maskable"].sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("examples", "rule"),
    [
        ({"input_ids": [[5] * 41]}, "1 to 40 tokens to be packed, got 41"),
        ({"input_ids": [[]]}, "1 to 40 tokens to be packed, got 0"),
        ({"input_ids": [[5]], "labels": [[5, 6]]}, "label for each token, got 2 for 1"),
    ],
)
def test_what_cannot_be_packed(examples, rule):
    with pytest.raises(ValueError, match=rule):
        pack_samples(examples, seq_length=ROOM)


def test_models_that_are_not_known():
    model = tiny("bert")
    with pytest.raises(ValueError, match="pad_to_multiple_of must be at least 1"):
        PackingCollator(model, PAD_ID, pad_to_multiple_of=0)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="needs attn_implementation sdpa or eager, got 'flash_attention_2'"):
        PackingCollator(model, PAD_ID)
    model.config.model_type = "llama"
    with pytest.raises(ValueError, match=r"known for bert, .*, got the family 'llama'"):
        PackingCollator(model, PAD_ID)
    with pytest.raises(ValueError, match="must begin at 0"):
        PackingCollator(tiny("bert"), PAD_ID)([{"input_ids": [5, 6], "position_ids": [1, 2]}])
