"""Samples made once and saved: python -m dllm.tools.preprocess_{sft,pt}_dataset."""

import json

import pytest

from dllm.data import load_pt_dataset, load_sft_dataset
from dllm.data.chat import default_sft_map_fn
from dllm.data.tokens import tokenize_and_group
from dllm.demo.shipped import SHIPPED, load_shipped
from dllm.tools import preprocess_pt_dataset, preprocess_sft_dataset, shards
from tests import programs

datasets = pytest.importorskip("datasets")
TALKS = [
    {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": f"{n + 1}"}]}
    for n in range(7)
]
TEXTS = [{"text": f"{n} + {n} = {2 * n}"} for n in range(9)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in (("talks", TALKS), ("texts", TEXTS)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def sft(folder, *more, rows="talks", output="out") -> int:
    options = dict(model_name_or_path=SHIPPED, dataset_args=folder / f"{rows}.jsonl", output_dir=folder / output)
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return preprocess_sft_dataset.main([*named, "--num_proc", "1", "--shard_rows", "3", *more])


def pt(folder, *more, output="out") -> int:
    options = dict(model_name_or_path=SHIPPED, dataset_args=folder / "texts.jsonl", output_dir=folder / output)
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return preprocess_pt_dataset.main([*named, "--num_proc", "1", "--shard_rows", "4", "--seq_length", "3", *more])


def test_samples_of_conversations(folder, capsys):
    assert sft(folder) == 0
    found = load_sft_dataset(str(folder / "out"), load_preprocessed_data=True)["train"]
    tokenizer = load_shipped()[1]
    assert list(found) == [default_sft_map_fn(row, tokenizer=tokenizer) for row in TALKS]
    assert "7 samples of train" in capsys.readouterr().out
    before = (folder / "out" / shards.NOTE).stat().st_mtime_ns
    assert sft(folder) == 0 and "is there already" in capsys.readouterr().out
    assert (folder / "out" / shards.NOTE).stat().st_mtime_ns == before
    assert sft(folder, "--mask_prompt_loss", "False") == 1 and "exists: name another" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if "out" in path.name) == ["out"]


def test_the_names_that_dllm_01_has_for_options(folder):
    rows = [{"Body": row["text"], "id": n} for n, row in enumerate(TEXTS)]
    (folder / "bodies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--text_field", "body", "--max_length", "5", "--dataset_args", str(folder / "bodies.jsonl"))
    assert pt(folder, *options) == 0
    found = load_pt_dataset(str(folder / "out"), False, load_preprocessed_data=True)["train"]
    assert {len(row["input_ids"]) for row in found} == {5} and found.column_names == ["input_ids", "labels"]


def test_options_of_conversations(folder, capsys):
    options = ("--max_length", "2", "--truncation", "filter", "--mask_prompt_loss", "no", "--remove_columns", "False")
    assert sft(folder, *options) == 1 and "no samples came out of the rows of train" in capsys.readouterr().err
    whole = default_sft_map_fn(TALKS[0], tokenizer=load_shipped()[1])
    longest = len(whole["input_ids"]) - 1
    assert sft(folder, "--max_length", str(longest), "--remove_columns", "False") == 0
    (sample, *_) = load_sft_dataset(str(folder / "out"), load_preprocessed_data=True)["train"]
    assert sample["labels"] == whole["labels"][:longest] and sample["messages"] == TALKS[0]["messages"]


@pytest.mark.parametrize("streaming", ["True", "False"])
def test_samples_of_texts(folder, streaming):
    assert pt(folder, "--streaming", streaming) == 0
    found = [
        row["input_ids"] for row in load_pt_dataset(str(folder / "out"), False, load_preprocessed_data=True)["train"]
    ]
    expected = []
    for start in (0, 4, 8):  # a shard is cut for itself
        texts = {"text": [row["text"] for row in TEXTS[start : start + 4]]}
        expected += tokenize_and_group(texts, load_shipped()[1], seq_length=3, insert_eos=True)["input_ids"]
    assert found == expected


@pytest.mark.parametrize("streaming", ["True", "False"])
def test_an_interrupted_run_goes_on(folder, monkeypatch, capsys, streaming):
    assert pt(folder, "--streaming", streaming, output="whole") == 0
    write, written = shards._write, []

    def interrupted(samples, path):
        if written:
            path.with_suffix(".growing").write_bytes(b"PAR1 and then the power went")
            raise KeyboardInterrupt
        written.append(path)
        write(samples, path)

    monkeypatch.setattr(shards, "_write", interrupted)
    assert pt(folder, "--streaming", streaming) == 130
    assert "the same command goes on" in capsys.readouterr().err and not (folder / "out").exists()
    monkeypatch.setattr(shards, "_write", lambda samples, path: (written.append(path), write(samples, path)))
    assert pt(folder, "--streaming", streaming, "--insert_eos", "False") == 1
    assert "begun with other settings" in capsys.readouterr().err
    assert pt(folder, "--streaming", streaming) == 0
    assert [path.stem for path in written] == ["00000", "00001", "00002"]
    whole, resumed = (datasets.load_from_disk(str(folder / name))["train"] for name in ("whole", "out"))
    assert list(resumed) == list(whole) and not (folder / "out.partial").exists()


def test_shards_without_samples(folder):
    """Texts too short for a sample: two of three shards give nothing."""
    assert pt(folder, "--seq_length", "12", "--insert_eos", "False", "--shard_rows", "8") == 0
    assert len(load_pt_dataset(str(folder / "out"), streaming=False, load_preprocessed_data=True)["train"]) == 3


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("--sft_map_fn_path", "dllm.utils.nothing"), "must name a function as package.module.function"),
        (("--sft_map_fn_path", "nothing"), "must name a function as package.module.function"),
        (("--dataset_args", "no/such/folder"), "no file or folder no/such/folder"),
        (("--dataset_args", "{}/texts.jsonl"), "must have messages"),
        (("--dataset_args", "{}/empty.jsonl"), "is empty"),
        (("--dataset_args", "{}/robot.jsonl"), "system, user or assistant, got 'robot'"),
    ],
)
def test_what_cannot_be_done(folder, capsys, change, rule):
    (folder / "empty.jsonl").touch()
    (folder / "robot.jsonl").write_text(json.dumps({"messages": [{"role": "robot", "content": "x"}]}))
    assert sft(folder, *(text.format(folder) for text in change)) == 1
    assert rule in capsys.readouterr().err and not (folder / "out").exists()
    assert sft(folder) == 0  # what failed stands in nobody's way


@pytest.mark.parametrize("change", [("--num_proc", "0"), ("--mask_prompt_loss", "perhaps"), ("--shards", "3")])
def test_options_that_make_no_sense(folder, change):
    with pytest.raises(SystemExit) as exit_:
        sft(folder, *change)
    assert exit_.value.code == 2


def test_it_is_a_program(folder):
    command = ["-m", "dllm.tools.preprocess_sft_dataset", "--model_name_or_path", str(folder / "none")]
    command += ["--dataset_args", str(folder / "talks.jsonl"), "--output_dir", str(folder / "out")]
    done = programs.run(*command)
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr
