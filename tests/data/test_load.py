"""Data sets from local files."""

import json

import pytest

from dllm.configs import DataArguments
from dllm.data.load import clip_row, load_sft_dataset, parse_spec, post_process_dataset

datasets = pytest.importorskip("datasets")


def talk(number: int) -> dict:
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}."}]}


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "one" / "train.jsonl", map(talk, range(5)))
    write(tmp_path / "one" / "test.jsonl", map(talk, range(5, 8)))
    write(tmp_path / "two.jsonl", map(talk, range(8, 10)))
    return tmp_path


def questions(rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def test_a_folder_has_a_split_for_each_file(folder):
    found = load_sft_dataset(str(folder / "one"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 5, "test": 3}


def test_counts_and_joined_sources(folder):
    found = load_sft_dataset(f"{folder / 'one'}[train:2, test:1] + {folder / 'two.jsonl'}")
    assert questions(found["train"]) == ["0?", "1?", "8?", "9?"] and questions(found["test"]) == ["5?"]
    assert questions(load_sft_dataset(f"{folder / 'two.jsonl'}|{folder / 'one'}[train:1]")["train"])[-1] == "0?"


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("one[train:6]", "at most its 5 rows, got 6"),
        ("one[train:x]", "got 'x'"),
        ("one[dev:1]", "the split 'dev', got train, test"),
        ("one[train:1", "expected name or name"),
        ("one[train]", "expected key:value"),
        ("one[train:_]", "got '_'"),
        ("text.jsonl", "must have messages, got text"),
        ("three.txt", "must be one of .json"),
    ],
)
def test_what_cannot_be_read(folder, spec, rule):
    write(folder / "text.jsonl", [{"text": "x"}])
    (folder / "three.txt").write_text("x")
    with pytest.raises(ValueError, match=rule):
        load_sft_dataset(str(folder / spec))


def test_what_is_not_there(folder):
    with pytest.raises(FileNotFoundError):
        load_sft_dataset(str(folder / "nothing"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a", {})),
        (" a/b [x:1_000, y:z] ", ("a/b", {"x": 1000, "y": "z"})),
        ("a[]", ("a", {})),
        (" a=b, n = 5 ", (None, {"a": "b", "n": 5})),
        ("data/year=2024[train:5]", ("data/year=2024", {"train": 5})),
    ],
)
def test_specifications(text, expected):
    assert parse_spec(text) == expected


def test_settings_name_no_data_set():
    with pytest.raises(ValueError, match="expected the name of a data set"):
        load_sft_dataset("train=5")


def test_what_has_an_entry_per_token_is_cut():
    row = dict(input_ids=[5, 6, 7], attention_mask=[1] * 3, token_type_ids=[0] * 3, prompt_len=1)
    assert clip_row(row, 2) == dict(input_ids=[5, 6], attention_mask=[1] * 2, token_type_ids=[0] * 2, prompt_len=1)


def test_long_samples_are_cut_or_left_out():
    rows = [dict(input_ids=list(range(n)), labels=[-100] * n, prompt_len=1) for n in (2, 4, 6)]
    dataset = datasets.Dataset.from_list(rows)
    cut = post_process_dataset(dataset, DataArguments(max_length=4, num_proc=1))
    assert [len(row["input_ids"]) for row in cut] == [len(row["labels"]) for row in cut] == [2, 4, 4]
    kept = post_process_dataset(dataset, DataArguments(max_length=4, num_proc=1, truncation="filter"))
    assert [len(row["input_ids"]) for row in kept] == [2, 4]
    assert clip_row(rows[2], 1) == dict(input_ids=[0], labels=[-100], prompt_len=1)
