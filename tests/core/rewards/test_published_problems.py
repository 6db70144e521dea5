"""Published data sets of problems and users' own prompts, from files in the published formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from dllm.core.rewards import TimedRewards
from dllm.pipelines import rl
from dllm.pipelines.rl import SUPPORTED_DATASETS, get_dataset_and_rewards, load_prompt_dataset

pytest.importorskip("datasets")

SUDOKU = ("1030041020034001", "1234341221434321")
TEST = "from solution import double\n\ndef test_double():\n    assert double(2) == 4\n"
ROWS = {
    "gsm8k": [{"question": f"What is 6 * {n}?", "answer": f"6 * {n} = {6 * n}\n#### {6 * n}"} for n in range(20)],
    "countdown": [{"nums": [2, 3, 4 + n % 2 * 5, 6][: 3 + (n == 7)], "target": 5} for n in range(20)],
    "sudoku": [{"Puzzle": SUDOKU[0], "Solution": SUDOKU[1]} for _ in range(20)],
    "math": [{"problem": f"Halve ${n}$.", "solution": rf"It is $\boxed{{\frac{{{n}}}{{2}}}}$."} for n in range(20)],
    "code": [{"question": f"Double, {n}.", "test": TEST if n else "assert True"} for n in range(20)],
}
ANSWERS = {
    "gsm8k": "<reasoning>\nOnce.\n</reasoning>\n<answer>\n6\n</answer>\n",
    "countdown": "<answer>2*4-3</answer>",
    "sudoku": f"<answer>{SUDOKU[1]}</answer>",
    "math": r"<answer>\boxed{\frac12}</answer>",
    "code": "<answer>\n```python\ndef double(x):\n    return 2 * x\n```\n</answer>",
}
# the row that an answer is for, and what the answer is worth
RIGHT = {
    "gsm8k": {"answer": "6"},
    "countdown": {"numbers": [2, 3, 4], "target": 5},
    "sudoku": {"solution": SUDOKU[1]},
    "math": {"answer": r"It is $\boxed{\frac{1}{2}}$."},
    "code": {"tests": TEST},
}
BEST = {
    "gsm8k": [0.5, 0.5, 0.5, 0.5, 2.0],
    "countdown": [1.0],
    "sudoku": [1.0],
    "math": [2.0, 1.0],
    "code": [0.126, 1.5],
}
QUESTION = {"gsm8k": "What is 6 * ", "countdown": "[2, 3, ", "sudoku": SUDOKU[0], "math": "Halve", "code": "Double"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BASE_DATASETS_DIR", raising=False)


def write(folder: Path, rows: list[dict], split: str = "train") -> str:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def published(name: str, folder: Path) -> str:
    """A copy of the data set, with the splits that are published."""
    if name == "sudoku":
        folder.mkdir()
        with (folder / "puzzles.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["Puzzle", "Solution"])
            table.writeheader()
            table.writerows(ROWS[name])
        return str(folder / "puzzles.csv")
    if name in ("gsm8k", "math"):
        write(folder, ROWS[name][:2], "test")
    return write(folder, ROWS[name])


@pytest.mark.parametrize("name", SUPPORTED_DATASETS)
def test_published_problems(name, tmp_path):
    path = published(name, tmp_path / name)
    rows, rewards = get_dataset_and_rewards(name, path=path)
    test, _ = get_dataset_and_rewards(name, "test", path=path)
    assert 1 <= test.num_rows <= 2 < rows.num_rows
    (message,) = rows[0]["prompt"]
    assert message["role"] == "user" and "<answer>" in message["content"]
    assert QUESTION[name] in message["content"]
    row = next(row for row in rows if RIGHT[name].items() <= row.items())
    columns = {column: [value] for column, value in row.items() if column != "prompt"}
    with TimedRewards(rewards) as timed:
        timed.check_columns(rows.column_names)
        assert [value for (value,) in timed([ANSWERS[name]], columns)] == BEST[name]


def test_splits_of_what_is_published_as_one(tmp_path):
    """10 % with seed 42, no row in both, before rows are left out."""
    path = published("code", tmp_path / "code")
    parts = [get_dataset_and_rewards("code", split, path=path)[0] for split in ("train", "test")]
    asked = [{row["prompt"][0]["content"].rpartition(" ")[2] for row in part} for part in parts]
    assert not asked[0] & asked[1] and asked[0] | asked[1] == {f"{n}." for n in range(1, 20)}
    assert [get_dataset_and_rewards("code", "test", path=path)[0][:] for _ in range(2)] == [parts[1][:]] * 2
    import datasets

    drawn = datasets.Dataset.from_list(ROWS["code"]).train_test_split(test_size=0.1, seed=42)["test"]["question"]
    assert {f"Double, {which}" for which in asked[1]} == set(drawn) - {"Double, 0."}


def test_countdown_has_three_numbers(tmp_path):
    path = write(tmp_path / "rows", ROWS["countdown"] + [{"nums": [1, 2, 3, 4], "target": 5}] * 20)
    rows, _ = get_dataset_and_rewards("countdown", path=path)
    assert {len(row["numbers"]) for row in rows} == {3} and set(rows.column_names) == {"prompt", "numbers", "target"}


def test_sudoku_by_the_environment(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="SUDOKU_DATA_PATH"):
        get_dataset_and_rewards("sudoku")
    monkeypatch.setenv("SUDOKU_DATA_PATH", published("sudoku", tmp_path / "sudoku"))
    rows, (reward,) = get_dataset_and_rewards("sudoku")
    assert reward is rl.get_reward("sudoku") and rows.num_rows == 18 and rows[0]["puzzle"] == SUDOKU[0]


def test_what_is_no_published_problem(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'gsm8k'"):
        get_dataset_and_rewards("gsm8")
    with pytest.raises(ValueError, match="splits knows no 'validation'"):
        get_dataset_and_rewards("gsm8k", "validation")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        get_dataset_and_rewards("gsm8k", path=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="'question'"):
        get_dataset_and_rewards("gsm8k", path=write(tmp_path / "a", [{"q": "?"}, {"q": "?"}]))
    with pytest.raises(ValueError, match="published format"):
        get_dataset_and_rewards("gsm8k", path=write(tmp_path / "b", [{"question": "?", "answer": 1}] * 2))
    with pytest.raises(ValueError, match="rows with problems"):
        get_dataset_and_rewards("countdown", path=write(tmp_path / "c", [{"nums": [1], "target": 1}] * 20))
    with pytest.raises(ValueError, match="the split 'test', got train"):
        get_dataset_and_rewards("gsm8k", "test", path=write(tmp_path / "d", ROWS["gsm8k"][:1]))


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_own_prompts(kind, tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "6 * 7 = ?", "answer": "42", "level": n} for n in range(4)])
    file = tmp_path / f"train.{kind}"
    rows.to_parquet(file) if kind == "parquet" else rows.to_json(file, lines=kind == "jsonl")
    found = load_prompt_dataset(f"{file}[train:3]")["train"]
    assert found.num_rows == 3 and set(found.column_names) == {"prompt", "answer", "level"}
    assert found[0]["prompt"] == [{"role": "user", "content": "6 * 7 = ?"}] and found[0]["answer"] == "42"


def test_own_conversations(tmp_path):
    answered = [*TALK, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "rows", [{"messages": TALK, "n": 1}, {"messages": answered, "n": 2}])
    assert [row["prompt"] for row in load_prompt_dataset(path)["train"]] == [TALK, TALK]
    both = write(tmp_path / "both", [{"prompt": TALK, "n": 3}])
    joined = load_prompt_dataset(f"{path} + {both}")["train"]
    assert joined["n"][:] == [1, 2, 3] and joined[2]["prompt"] == TALK


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "Hi"}, "must have prompt or messages, got text"),
        ({"prompt": "Hi", "completions": "x"}, "no column completions"),
        ({"prompt": "Hi", "prompts": "x"}, "no column prompts"),
        ({"prompt": "  ", "answer": "x"}, "row 0 .*not empty"),
        ({"prompt": [], "answer": "x"}, "row 0 .*at least one"),
        ({"prompt": 3}, "row 0 .*list of messages"),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "row 0 .*not the assistant"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "row 0 .*not the assistant"),
        ({"prompt": [{"role": "owner", "content": "Hi"}]}, "row 0 .*role"),
    ],
)
def test_what_is_no_prompt(row, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        load_prompt_dataset(write(tmp_path / "rows", [row]))


def test_prompts_with_different_columns_are_not_joined(tmp_path):
    parts = [write(tmp_path / name, [{"prompt": "Hi", name: 1}]) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"the same columns, got .*a.*b"):
        load_prompt_dataset(" + ".join(parts))
