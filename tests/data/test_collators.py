"""What stands around a collator."""

import pickle

import pytest
import torch
import transformers

from dllm.data.collators import CollatorWrapper, NoAttentionMaskWrapper, PrependBOSWrapper, RandomTruncateWrapper
from dllm.demo.shipped import load_shipped


class Doubling(CollatorWrapper):
    def before(self, samples):
        return [2 * sample for sample in samples]

    def after(self, batch):
        return batch | {"count": len(batch["input_ids"])}


def stack(samples, extra=0):
    return {"input_ids": samples, "extra": extra}


def test_before_and_after():
    assert Doubling(stack)([1, 2], extra=3) == {"input_ids": [2, 4], "extra": 3, "count": 2}


def test_all_else_is_the_collators_own():
    collator = transformers.DataCollatorForSeq2Seq(load_shipped()[1])
    wrapped = pickle.loads(pickle.dumps(NoAttentionMaskWrapper(collator)))
    assert wrapped.label_pad_token_id == -100 and wrapped.tokenizer.mask_token == "[MASK]"
    with pytest.raises(AttributeError):
        wrapped.nothing  # noqa: B018


def test_padding_is_attended_to_and_learnt():
    tokenizer = load_shipped()[1]
    end = tokenizer.pad_token_id
    collator = NoAttentionMaskWrapper(transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=end))
    batch = collator([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, end, end]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, end, end]]


def test_rows_begin_with_one_more_token():
    tokenizer = load_shipped()[1]
    samples = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    wrapped = PrependBOSWrapper(transformers.DataCollatorForSeq2Seq(tokenizer), bos_token_id=9)
    batch = NoAttentionMaskWrapper(pickle.loads(pickle.dumps(wrapped)))(samples)
    assert batch["input_ids"].tolist() == [[9, 5, 6, 7], [9, 8, *[tokenizer.pad_token_id] * 2]]
    assert batch["labels"].tolist() == [[-100, -100, 6, 7], [-100, 8, -100, -100]]
    with pytest.raises(TypeError, match="must be a token id, got None"):
        PrependBOSWrapper(stack, bos_token_id=None)


def rows(samples):
    tokens = torch.tensor(samples)
    return {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": torch.ones_like(tokens), "name": "x"}


def test_a_share_of_batches_has_a_random_length():
    """Whether a batch is cut, and to which of 8 lengths, are independent draws: counts of them lie within 5 standard
    deviations of what is expected except once in a million."""
    batches, share = 4000, 0.4
    wrapped = RandomTruncateWrapper(rows, random_length_ratio=share)
    samples = torch.randint(1000, (batches, 2, 8), generator=torch.Generator().manual_seed(0)).tolist()
    lengths = [wrapped(sample)["input_ids"].shape[1] for sample in samples]
    for length in range(1, 8):
        expected = share / 8
        assert abs(lengths.count(length) - batches * expected) < 5 * (batches * expected * (1 - expected)) ** 0.5
    assert lengths == [wrapped(sample)["input_ids"].shape[1] for sample in samples]
    assert RandomTruncateWrapper(rows, random_length_ratio=0)(samples[0])["input_ids"].shape == (2, 8)


def test_what_is_cut_keeps_a_label():
    def labelled(samples):
        batch = rows(samples)
        batch["labels"][:, :5] = -100
        return batch

    wrapped = RandomTruncateWrapper(labelled, random_length_ratio=1)
    found = [wrapped([[number] * 8, [0] * 8]) for number in range(60)]
    assert {batch["input_ids"].shape[1] for batch in found} == {6, 7, 8}
    for batch in found:
        assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["name"] == "x"
    unlearnt = RandomTruncateWrapper(labelled, random_length_ratio=1, label_pad_token_id=0)
    assert unlearnt([[0] * 8])["labels"].shape == (1, unlearnt([[0] * 8])["input_ids"].shape[1])


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        RandomTruncateWrapper(stack, random_length_ratio=1.5)
