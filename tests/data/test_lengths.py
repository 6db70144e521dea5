"""Samples that are longer than they may be."""

import logging

import pytest

from dllm.configs import DataArguments
from dllm.data.lengths import clip_row, clip_row_streaming, post_process_dataset, post_process_dataset_streaming

datasets = pytest.importorskip("datasets")
ROWS = [dict(input_ids=list(range(n)), labels=[-100] * n, prompt_len=prompt) for n, prompt in ((2, 1), (4, 3), (6, 4))]


@pytest.mark.parametrize("clip", [clip_row, clip_row_streaming])
def test_what_has_an_entry_per_token_is_cut(clip):
    row = dict(input_ids=[5, 6, 7], attention_mask=[1] * 3, token_type_ids=[0] * 3, prompt_len=1)
    assert clip(row, 2) == dict(input_ids=[5, 6], attention_mask=[1] * 2, token_type_ids=[0] * 2, prompt_len=1)
    assert clip(row, 2, truncation="left")["input_ids"] == [6, 7] and clip(row, 9) == row


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("truncation", "longest", "expected"),
    [
        ("right", 5, [2, 4, 5]),
        ("right", 4, [2, 4]),  # of the third only its prompt would be left
        ("filter", 4, [2, 4]),
        ("filter", 1, []),
    ],
)
def test_long_samples_are_cut_or_left_out(streaming, truncation, longest, expected):
    arguments = DataArguments(max_length=longest, num_proc=1, truncation=truncation)
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    if streaming:
        splits = datasets.IterableDatasetDict(train=splits["train"].to_iterable_dataset())
    process = post_process_dataset_streaming if streaming else post_process_dataset
    for found in (process(splits, arguments)["train"], process(splits["train"], arguments)):
        assert [len(row["input_ids"]) for row in found] == [len(row["labels"]) for row in found] == expected


def test_samples_without_prompts():
    found = post_process_dataset(datasets.Dataset.from_list([{"input_ids": [5, 6]}]), DataArguments(max_length=1))
    assert list(found) == [{"input_ids": [5]}]


@pytest.mark.parametrize(("options", "rule"), [((0,), "at least 1, got 0"), ((1, "middle"), "right or left")])
def test_what_cannot_be_cut(options, rule):
    with pytest.raises(ValueError, match=rule):
        clip_row({"input_ids": [5]}, *options)


def test_what_is_cut_and_left_out_is_counted(caplog):
    rows = [*ROWS, dict(input_ids=[5, 6], labels=[-100, -100], prompt_len=2)]  # the last teaches nothing
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(rows), test=datasets.Dataset.from_list(ROWS[:1]))
    with caplog.at_level(logging.WARNING, logger="dllm"):
        found = post_process_dataset(splits, DataArguments(max_length=5, num_proc=1))
        assert [len(row["input_ids"]) for row in found["train"]] == [2, 4, 5]
        found = post_process_dataset(splits["train"], DataArguments(max_length=4, num_proc=1, truncation="filter"))
    assert [len(row["input_ids"]) for row in found] == [2, 4]
    nothing = "4 samples of {} are left out: nothing of them would be learnt"
    assert caplog.messages == [
        f"1 of {nothing.format('train')}",
        "1 of 3 samples of train are cut to max_length = 5 tokens",
        f"2 of {nothing.format('the data')} or have more than max_length = 4 tokens",
    ]
