"""Published data sets of problems with answers that can be checked, and the rewards that check them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dllm.configs import check_name
from dllm.core.rewards import Reward, get_reward
from dllm.core.rewards.code import split_tests
from dllm.data.files import open_source, require_datasets
from dllm.data.spec import Source
from dllm.data.splits import SEED

_log = logging.getLogger("dllm")

SUDOKU_VARIABLE = "SUDOKU_DATA_PATH"
TEST_SHARE = 0.1  # of a data set that is published without a test split

_TAGS = "Answer in this form:\n<reasoning>\nyour reasoning\n</reasoning>\n<answer>\nyour answer\n</answer>"
_MATH = f"Solve the problem step by step, and write the final answer in \\boxed{{}}, inside the answer.\n{_TAGS}"
_COUNTDOWN = (
    "Write an arithmetic expression of the numbers {numbers} with the value {target}. Use each number exactly once, "
    "and +, -, *, / and parentheses as needed. The answer is the expression alone, without an equals sign: for the "
    f"numbers [2, 3, 4] and the value 5, 2*4-3 is right.\n{_TAGS}"
)
_SUDOKU = (
    "Solve this 4 x 4 sudoku. It is given row by row as 16 digits, with 0 for an empty cell. Every row, every column "
    "and every 2 x 2 box has each of the digits 1 to 4 once. The answer is the 16 digits of the full grid.\n"
    f"{_TAGS}\n\nPuzzle: {{puzzle}}"
)
_CODE = f"Write a Python program for this task, as a code block (```python) in the answer.\n{_TAGS}"


class Problems(NamedTuple):
    """A data set of problems.

    Attributes:
        hub_name: name on the Hub; None if it is not there.
        read: converts a row to its question and the columns that the rewards need; None leaves the row out.
        rewards: names of rewards.
    """

    hub_name: str | None
    read: Callable[[Mapping[str, Any]], dict[str, Any] | None]
    rewards: tuple[str, ...]


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": f"{_TAGS}\n\n{row['question']}", "answer": row["answer"].rpartition("####")[2].strip()}


def _countdown(row: Mapping[str, Any]) -> dict[str, Any] | None:
    numbers, target = list(row["nums"]), row["target"]
    if len(numbers) != 3:
        return None
    return {"prompt": _COUNTDOWN.format(numbers=numbers, target=target), "numbers": numbers, "target": target}


def _sudoku(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": _SUDOKU.format(puzzle=row["Puzzle"]), "puzzle": row["Puzzle"], "solution": row["Solution"]}


def _math(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": f"{_MATH}\n\n{row['problem']}", "answer": row["solution"]}


def _code(row: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"prompt": f"{_CODE}\n\n{row['question']}", "tests": row["test"]} if split_tests(row["test"]) else None


_PROBLEMS = {
    "gsm8k": Problems("openai/gsm8k", _gsm8k, ("xmlcount", "soft_format", "strict_format", "int", "correctness")),
    "countdown": Problems("Jiayi-Pan/Countdown-Tasks-3to4", _countdown, ("countdown",)),
    "sudoku": Problems(None, _sudoku, ("sudoku",)),
    "math": Problems("ankner/math-500", _math, ("correctness_math", "boxed_format")),
    "code": Problems("KodCode/KodCode-Light-RL-10K", _code, ("xmlcount", "code")),
}
SUPPORTED_DATASETS = tuple(_PROBLEMS)


def get_dataset_and_rewards(name: str, split: str = "train", *, path: str | None = None) -> tuple[Any, list[Reward]]:
    """Problems with checkable answers, and the rewards of their answers.

    | name | data set | columns | rewards |
    |---|---|---|---|
    | gsm8k | openai/gsm8k | answer | xmlcount, soft_format, strict_format, int, correctness |
    | countdown | Jiayi-Pan/Countdown-Tasks-3to4, rows with three numbers | numbers, target | countdown |
    | sudoku | a CSV file with Puzzle and Solution, 4 x 4 (of d1) | puzzle, solution | sudoku |
    | math | ankner/math-500 | answer (the solution) | correctness_math, boxed_format |
    | code | KodCode/KodCode-Light-RL-10K, rows with tests | tests | xmlcount, code |

    Args:
        name: one of :data:`SUPPORTED_DATASETS`.
        split: train or test. Of countdown, sudoku and code, which are published as one split, 10 % are the test split,
            drawn with seed 42.
        path: a file or a folder with a copy in the published format, in place of the name on the Hub. sudoku is not on
            the Hub: its path may also be given by the environment variable SUDOKU_DATA_PATH.

    Returns:
        (rows, rewards): a `datasets.Dataset` with `prompt`, a list of messages, and the columns above; functions.

    Raises:
        FileNotFoundError, ConnectionError: no such data set; the Hub cannot be reached.
        ImportError: the package datasets is not installed.
        ValueError: an unknown name or split, sudoku without a path, or rows without the columns of the data set.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     row = {"question": "What is 6 * 7?", "answer": "6 * 7 = 42\\n#### 42"}
        ...     _ = (Path(folder) / "train.jsonl").write_text(json.dumps(row))
        ...     rows, rewards = get_dataset_and_rewards("gsm8k", path=folder)
        >>> rows[0]["answer"], [reward.__name__ for reward in rewards][-1]
        ('42', 'correctness_reward')
    """
    check_name("the table of problems", name, SUPPORTED_DATASETS)
    check_name("the list of splits", split, ("train", "test"))
    require_datasets()
    problems = _PROBLEMS[name]
    place = _place(name, problems, path)
    rows = _split(open_source(Source(name=place)), split, place)
    return _converted(rows, problems, place), rewards_of(name)


def rewards_of(name: str) -> list[Reward]:
    """The rewards of a data set of :data:`SUPPORTED_DATASETS`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> [reward.__name__ for reward in rewards_of("countdown")]
        ['countdown_reward']
    """
    check_name("the table of problems", name, SUPPORTED_DATASETS)
    return [get_reward(reward) for reward in _PROBLEMS[name].rewards]


def _place(name: str, problems: Problems, path: str | None) -> str:
    """The local path or the name on the Hub."""
    if path is not None and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"there is no file or folder {path} with the data set {name}")
    place = path or (os.environ.get(SUDOKU_VARIABLE) if problems.hub_name is None else problems.hub_name)
    if not place:
        raise ValueError(f"{name} needs the path of its file: path, or the environment variable {SUDOKU_VARIABLE}")
    return str(place)


def _split(found: Mapping[str, Any], split: str, place: str) -> Any:
    if "test" not in found and "train" in found and found["train"].num_rows > 1:
        return found["train"].train_test_split(test_size=TEST_SHARE, seed=SEED)[split]
    if split not in found:
        raise ValueError(f"{place} must have the split {split!r}, got {', '.join(found)}")
    return found[split]


def _converted(rows: Any, problems: Problems, place: str) -> Any:
    def read(row: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return problems.read(row)
        except KeyError as error:
            raise ValueError(f"rows of {place} must have the column {error}, got {', '.join(row)}") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"rows of {place} must have the published format, got {dict(row)!r:.300}") from error

    kept = rows.filter(lambda row: read(row) is not None, desc=f"problems of {place}")
    if not kept.num_rows:
        raise ValueError(f"{place} must have rows with problems, got none among {rows.num_rows}")
    if kept.num_rows < rows.num_rows:
        _log.info("%d of %d rows of %s are used", kept.num_rows, rows.num_rows, place)

    def convert(row: Mapping[str, Any]) -> dict[str, Any]:
        made = read(row)
        return made | {"prompt": [{"role": "user", "content": made["prompt"]}]}

    return kept.map(convert, remove_columns=rows.column_names, desc=f"prompts of {place}")
