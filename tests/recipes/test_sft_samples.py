"""The samples of a fine-tuning run: from a file to labels."""

import json

import pytest

from dllm.data import load_sft_dataset
from dllm.demo.shipped import SHIPPED
from dllm.models import get_tokenizer
from dllm.recipes import SFT, SFTData
from dllm.tools import preprocess_sft_dataset

datasets = pytest.importorskip("datasets")
TALK = [
    {"role": role, "content": text}
    for turn in (("6 * 7 = ?", "42"), ("9 * 9 = ?", "81"))
    for role, text in zip(("user", "assistant"), turn, strict=True)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer(model_name_or_path=SHIPPED)


def file(folder, *rows) -> str:
    path = folder / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    return str(path)


def learnt(sample, tokenizer) -> list[str]:
    kept = [token if label != -100 else tokenizer.mask_token_id for token, label in zip(*sample, strict=True)]
    return [text.strip() for text in tokenizer.decode(kept).split("[MASK]") if text.strip()]


@pytest.mark.parametrize(("answers", "expected"), [("last", ["81[/Answer]"]), ("all", ["42[/Answer]", "81[/Answer]"])])
def test_which_answers_are_learnt(folder, tokenizer, answers, expected):
    """In a run, and in data that are prepared for one."""
    talks = file(folder, TALK)
    (sample,) = SFT.samples(SFTData(dataset_args=talks, answers=answers, num_proc=1), tokenizer)["train"]
    found = learnt((sample["input_ids"], sample["labels"]), tokenizer)
    assert ["".join(text.split()) for text in found] == expected
    options = dict(model_name_or_path=SHIPPED, dataset_args=talks, output_dir=folder / "out", num_proc=1)
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert preprocess_sft_dataset.main([*named, "--answers", answers]) == 0
    (saved,) = load_sft_dataset(str(folder / "out"), load_preprocessed_data=True)["train"]
    assert saved["labels"] == sample["labels"] and saved["input_ids"] == sample["input_ids"]


def test_a_row_that_cannot_be_learnt_is_named(folder, tokenizer):
    called = [*TALK[:1], {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "multiply"}}]}]
    rows = [[*TALK[:2]], called]
    rule = r"row 1: the chat template leaves out the tool_calls of message 1 \(assistant\) .*begins with '6 \* 7 = \?'"
    with pytest.raises(ValueError, match=rule):
        SFT.samples(SFTData(dataset_args=file(folder, *rows), num_proc=1), tokenizer)


def test_answers_that_make_no_sense():
    with pytest.raises(ValueError, match="answers must be one of last, all, got 'every'"):
        SFTData(dataset_args="d", answers="every")
