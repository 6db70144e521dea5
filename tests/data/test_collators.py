"""What stands around a collator."""

import pickle

import pytest
import transformers

from dllm.data.collators import CollatorWrapper, NoAttentionMaskWrapper
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
