"""Data sets from local files."""

import codecs
import functools
import gzip
import itertools
import json
import logging

import pytest

from dllm.data import load_pt_dataset, load_sft_dataset
from dllm.data.tokens import tokenize_and_group
from dllm.demo.shipped import load_shipped
from tests.data.rows import questions, talk, write

datasets = pytest.importorskip("datasets")
BOOK = "Call me Ishmael.\nSome years ago\n\nnever mind how long\n\n\n\nprecisely"


@pytest.fixture
def talks(folder):
    """A folder with 5 and 3 conversations, a file with 2."""
    write(folder / "one" / "train.jsonl", map(talk, range(5)))
    write(folder / "one" / "test.jsonl", map(talk, range(5, 8)))
    write(folder / "two.jsonl", map(talk, range(8, 10)))
    return folder


def texts(rows) -> list[str]:
    return [row["text"] for row in rows]


def test_a_folder_has_a_split_for_each_file(talks):
    found = load_sft_dataset(str(talks / "one"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 5, "test": 3}


def test_counts_and_joined_sources(talks):
    found = load_sft_dataset(f"{talks / 'one'}[train:2, test:1] + {talks / 'two.jsonl'}")
    assert questions(found["train"]) == [0, 1, 8, 9] and questions(found["test"]) == [5]
    assert questions(load_sft_dataset(f"{talks / 'two.jsonl'}|{talks / 'one'}[train:1]")["train"]) == [8, 9, 0]


def test_kinds_of_files(folder):
    rows = [talk(number) for number in range(3)]
    whole = datasets.Dataset.from_list(rows)
    whole.to_parquet(str(folder / "a.parquet"))
    (folder / "b.json").write_text(json.dumps(rows, indent=1))
    (folder / "c.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (folder / "e.csv").write_text("instruction,output\n0?,0.\n1?,1.\n2?,2.\n")
    whole.save_to_disk(str(folder / "f"))
    for name in ("a.parquet", "b.json", "c.json", "d.jsonl.gz", "e.csv", "f"):
        assert questions(load_sft_dataset(str(folder / name))["train"]) == [0, 1, 2], name


def test_the_folder_of_all_data_sets(talks, monkeypatch):
    monkeypatch.setenv("BASE_DATASETS_DIR", str(talks))
    assert questions(load_sft_dataset("two.jsonl[train:1]")["train"]) == [8]
    with pytest.raises(FileNotFoundError, match="no file or folder three.jsonl in .* BASE_DATASETS_DIR=" + str(talks)):
        load_sft_dataset("three.jsonl")


def test_a_part_is_a_folder_of_the_data_set(talks):
    assert questions(load_sft_dataset(f"{talks}[name:one,train:1]")["train"]) == [0]
    with pytest.raises(ValueError, match="has no part 'six'"):
        load_sft_dataset(f"{talks}[name:six]")


def test_a_missing_test_split_is_held_out(talks, caplog):
    name = write(talks / "ten.jsonl", map(talk, range(10)))
    with caplog.at_level(logging.WARNING, logger="dllm"):
        found = load_sft_dataset(f"{name}[train:6,test:3]")
    train, test = questions(found["train"]), questions(found["test"])
    assert (len(train), len(test)) == (6, 3) and not set(train) & set(test)
    assert train == sorted(train) and test == sorted(test) and test != [0, 1, 2]
    assert "no split test: 3 rows of train are held out" in caplog.text
    assert questions(load_sft_dataset(f"{name}[test:3]")["test"]) == test


@pytest.mark.parametrize("name", ["tatsu-lab/alpaca", "allenai/tulu-3-sft-mixture"])
def test_what_dllm_01_holds_out(folder, name, caplog):
    """Its script evaluates by default, and its data set has no test split: the rows are those that 0.1 draws."""
    write(folder / name / "train.jsonl", map(talk, range(60)))
    with caplog.at_level(logging.WARNING, logger="dllm"):
        found = load_sft_dataset(str(folder / name))
    drawn = datasets.Dataset.from_dict({"n": range(60)}).train_test_split(test_size=0.05, seed=42)
    assert {split: questions(rows) for split, rows in found.items()} == {s: list(drawn[s]["n"]) for s in drawn}
    assert len(found["test"]) == 3 and "3 rows of train are held out" in caplog.text
    assert questions(load_sft_dataset(f"{folder / name}[test:2]")["test"]) == list(drawn["test"]["n"])[:2]
    write(folder / name / "test.jsonl", map(talk, range(2)))
    assert questions(load_sft_dataset(str(folder / name))["test"]) == [0, 1]


def test_a_mixture_has_the_weights_asked_for(folder):
    """Each row of a mixture is an independent draw between the sources, so a share lies within 5 standard errors of its
    weight except once in two million; the data are drawn by a fixed seed."""
    left = write(folder / "left.jsonl", map(talk, range(2000)))
    right = write(folder / "right.jsonl", map(talk, range(2000, 6000)))
    found = questions(load_sft_dataset(f"{left}[weight:3]+{right}[weight:1]")["train"])
    of_left = [number for number in found if number < 2000]
    error = (0.75 * 0.25 / len(found)) ** 0.5
    assert abs(len(of_left) / len(found) - 0.75) < 5 * error
    assert of_left == list(range(2000))  # the first to end: all of it, in order, once
    streamed = [{"text": str(number)} for number in range(30)]
    one, two = write(folder / "x.jsonl", streamed[:10]), write(folder / "y.jsonl", streamed[10:])
    mixed = [int(text) for text in texts(load_pt_dataset(f"{one}[weight:1]+{two}[weight:1]", repeat=False)["train"])]
    assert sorted(mixed) != mixed and len(set(mixed)) == len(mixed)


def test_cells_of_a_table_are_text(folder):
    (folder / "a.csv").write_text("question,answer\nagent?,007\ncountry?,NA\nnothing?,\n")
    found = load_sft_dataset(str(folder / "a.csv"))["train"]
    assert [row["messages"][1]["content"] for row in found] == ["007", "NA", ""]
    numbers = write(folder / "b.jsonl", [{"question": "1 + 1?", "answer": 2}])
    with pytest.raises(ValueError, match="content must be text, got 2"):
        load_sft_dataset(numbers)


MARK = codecs.BOM_UTF8


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_text(folder, pack):
    """As spreadsheets and Windows write files, with its line ends, too."""
    end, rows = ".gz" if pack is gzip.compress else "", [{"instruction": "1?", "output": "1."}] * 2
    lines = "\r\n\r\n".join(map(json.dumps, rows)) + "\r\n \r\n"
    files = {"a.jsonl": lines, "b.json": json.dumps(rows), "c.csv": "instruction,output\r\n1?,1.\r\n\r\n1?,1.\r\n"}
    for name, text in files.items():
        (folder / f"{name}{end}").write_bytes(pack(MARK + text.encode()))
        assert questions(load_sft_dataset(str(folder / f"{name}{end}"))["train"]) == [1, 1], name
    (folder / f"d.txt{end}").write_bytes(pack(MARK + b"one\r\n\r\ntwo"))
    (folder / f"e.jsonl{end}").write_bytes(pack(MARK + b'{"text": "one"}\r\n\r\n{"text": "two"}'))
    for name in ("d.txt", "e.jsonl"):
        for streaming in (True, False):
            found = load_pt_dataset(f"{folder / name}{end}[train:2]", streaming=streaming, repeat=False)
            assert texts(found["train"]) == ["one", "two"], (name, streaming)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "a.jsonl must be UTF-8, got UTF-16"),
        ("a.csv", "instruction,output\nQ,A\n".encode("utf-16"), "a.csv must be UTF-8, got UTF-16"),
        ("a.txt.gz", gzip.compress("x".encode("utf-16"), mtime=0), "a.txt.gz must be UTF-8, got UTF-16"),
        ("a.txt.gz", b"not packed", "a.txt.gz cannot be read: Not a gzipped file"),
        ("a.jsonl", '{"text": "é"}'.encode("latin-1"), "last line of .*a.jsonl is no UTF-8"),
        ("a.csv", "instruction,output\né,A\n".encode("latin-1"), "a.csv cannot be read: 'utf-8' codec"),
        ("a.csv", b"instruction,output,output\nQ,A,B\n", "columns of different names, got 'output' twice"),
        ("a.csv", b"instruction,output\nadd 1, 2,3\n", "must have 2 cells in each row, got 3 in the first"),
        ("a.csv", b"instruction,output\nQ,A\nadd 1, 2,3\n", "a.csv cannot be read: .*Expected 2 fields in line 3"),
    ],
)
@pytest.mark.parametrize("load", [load_sft_dataset, load_pt_dataset])
def test_text_of_another_kind(folder, name, content, rule, load):
    if load is load_pt_dataset and "line 3" in rule:
        load = functools.partial(load, streaming=False)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rule):
        load(str(folder / name))


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_of_a_file(folder, streaming):
    path = folder / "book.txt"
    path.write_text(BOOK)
    load = functools.partial(load_pt_dataset, streaming=streaming, repeat=False)
    paragraphs = ["Call me Ishmael.\nSome years ago", "never mind how long", "precisely"]
    assert texts(load(str(path))["train"]) == paragraphs
    assert texts(load(f"{path}[by:document]")["train"]) == [BOOK]
    lines = texts(load(f"{path}[by:line,train:2]")["train"])
    assert lines == ["Call me Ishmael.", "Some years ago"]


@pytest.mark.parametrize("streaming", [True, False])
def test_counts_of_texts(folder, streaming):
    name = write(folder / "a" / "train.jsonl", [{"text": str(number), "id": number} for number in range(10)])
    found = load_pt_dataset(f"{name}[test:2,train:3]|{name}[train:1]", streaming=streaming, repeat=False)
    assert (texts(found["train"]), texts(found["test"])) == (["2", "3", "4", "0"], ["0", "1"])
    assert isinstance(found["train"], datasets.IterableDataset if streaming else datasets.Dataset)
    assert next(iter(found["train"])) == {"text": "2", "id": 2}


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_keep_their_columns(folder, streaming):
    """As they lie there: a script asks for the column that it knows, and removes all columns that there are."""
    name = write(folder / "a.jsonl", [{"Text": f"{n} + {n}", "id": n} for n in range(4)])
    found = load_pt_dataset(f"{name}[test:1]", streaming=streaming)
    assert next(iter(found["train"])) == {"Text": "1 + 1", "id": 1}
    assert found["train"].column_names == ["Text", "id"]
    group = functools.partial(tokenize_and_group, tokenizer=load_shipped()[1], text_field="Text", seq_length=3)
    cut = found.map(group, batched=True, remove_columns=found["train"].column_names)
    samples = [row["input_ids"] for row in itertools.islice(cut["train"], 3)]
    assert samples == [load_shipped()[1](f"{n} + {n}").input_ids for n in (1, 2, 3)]


def test_texts_of_several_kinds_are_joined_as_text(folder):
    one = write(folder / "a.jsonl", [{"Text": "A", "id": 1}])
    two = write(folder / "b.jsonl", [{"content": "B"}])
    assert load_pt_dataset(f"{one}+{two}", streaming=False)["train"][:] == {"text": ["A", "B"]}
    assert load_pt_dataset(f"{one}+{one}", streaming=False)["train"][:] == {"Text": ["A", "A"], "id": [1, 1]}
    with pytest.raises(ValueError, match="must have one of text, Text, content, raw_content, got poem"):
        load_pt_dataset(f"{one}+{write(folder / 'c.jsonl', [{'poem': 'C'}])}", streaming=False)


def test_a_stream_begins_again(folder):
    name = write(folder / "a.jsonl", [{"text": str(n)} for n in range(5)])
    found = load_pt_dataset(f"{name}[test:2]")
    assert texts(itertools.islice(found["train"], 7)) == ["2", "3", "4", "2", "3", "4", "2"]
    assert texts(found["test"]) == ["0", "1"]
    assert texts(load_pt_dataset(name, repeat=False)["train"]) == list("01234")


@pytest.mark.parametrize("streaming", [True, False])
def test_texts_of_one_language(folder, streaming):
    name = write(folder / "code.jsonl", [{"text": str(n), "lang": ("Python", "C")[n % 2]} for n in range(6)])
    found = load_pt_dataset(f"{name}[lang:python,train:2]", streaming=streaming, repeat=False)
    assert texts(found["train"]) == ["0", "2"]
    with pytest.raises(ValueError, match="must have one of lang, language, program_lang for lang:, got text"):
        load_pt_dataset(write(folder / "t.jsonl", [{"text": "x"}]) + "[lang:c]", streaming=streaming)


@pytest.mark.parametrize("streaming", [True, False])
def test_samples_that_were_saved(folder, streaming):
    rows = datasets.Dataset.from_list([{"input_ids": [n], "labels": [n]} for n in range(6)])
    datasets.DatasetDict(train=rows).save_to_disk(str(folder / "a"))
    rows.save_to_disk(str(folder / "b"))
    spec = f"{folder / 'a'}[train:2]|{folder / 'b'}[train:1]"
    found = load_pt_dataset(spec, streaming=streaming, load_preprocessed_data=True, repeat=False)["train"]
    assert [row["input_ids"] for row in found] == [[0], [1], [0]]
    assert load_sft_dataset(spec, load_preprocessed_data=True)["train"][1] == {"input_ids": [1], "labels": [1]}
    with pytest.raises(FileNotFoundError, match="no saved data set"):
        load_sft_dataset("nothing-here", load_preprocessed_data=True)
    with pytest.raises(ValueError, match="must be a data set that was saved"):
        load_sft_dataset(str(folder), load_preprocessed_data=True)
    next((folder / "b").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="b is not whole"):
        load_sft_dataset(str(folder / "b"), load_preprocessed_data=True)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("one[train:6]", "at most its 5 rows, got 6"),
        ("one[dev:1]", "the split 'dev', got train, test"),
        ("two.jsonl[test:3]", "at most its 2 rows, got 3"),
        ("text.jsonl", "must have messages, or .*; got text in 'train'"),
        ("three.md", "must be one of .json"),
        ("both", "must be of one kind, got .*a.jsonl.*b.txt|must be of one kind, got .*b.txt.*a.jsonl"),
        ("none", "must hold files of one of .json"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("cut.jsonl", "last line of .*cut.jsonl is no JSON: written by half"),
        ("cut.json", "cut.json does not end as JSON does"),
        ("cut.parquet", "cut.parquet is no whole parquet file"),
        ("broken.jsonl", "line 2 of .*broken.jsonl is no JSON"),
    ],
)
def test_what_cannot_be_read(talks, spec, rule):
    write(talks / "text.jsonl", [{"text": "x"}])
    for name in ("three.md", "both/a.jsonl", "both/b.txt", "none/README.md", "empty.jsonl"):
        (talks / name).parent.mkdir(exist_ok=True)
        (talks / name).write_text("" if name.startswith("empty") else "{}")
    (talks / "cut.jsonl").write_text(json.dumps(talk(1)) + "\n" + json.dumps(talk(2))[:20])
    (talks / "cut.json").write_text(json.dumps([talk(1)])[:-1])
    (talks / "broken.jsonl").write_text(f"{json.dumps(talk(1))}\n{{oops\n{json.dumps(talk(1))}\n")
    datasets.Dataset.from_list([talk(1)]).to_parquet(str(talks / "cut.parquet"))
    (talks / "cut.parquet").write_bytes((talks / "cut.parquet").read_bytes()[:-2])
    with pytest.raises(ValueError, match=rule):
        load_sft_dataset(f"{talks}/{spec}")


@pytest.mark.parametrize("load", [load_sft_dataset, load_pt_dataset])
def test_what_is_not_there(folder, load):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(str(folder / "nothing"))


def test_texts_without_text(folder):
    found = load_pt_dataset(write(folder / "talk.jsonl", [talk(1)]))["train"]
    group = functools.partial(tokenize_and_group, tokenizer=load_shipped()[1])
    with pytest.raises(ValueError, match="must have the column 'text', got messages"):
        next(iter(found.map(group, batched=True)))
