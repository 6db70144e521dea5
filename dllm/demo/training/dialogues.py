"""English dialogues of the package chatterbot-corpus: small talk for training, and text for benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SUBJECTS = ("conversations", "food", "science", "computers", "literature")
SMALL_TALK = (
    "greetings",
    "conversations",
    "botprofile",
    "ai",
    "emotion",
    "food",
    "health",
    "money",
    "movies",
    "science",
    "literature",
    "trivia",
)
LONGEST_LINE = 14  # words


def subjects() -> list[str]:
    """The subjects of the corpus, one file each."""
    return sorted(path.stem for path in _folder().glob("*.yml"))


def dialogues(subject: str) -> list[list[str]]:
    """All dialogues of a subject, each a list of lines."""
    import yaml

    path = _folder() / f"{subject}.yml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, where libyaml is there
    found = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["conversations"]
    return [[str(line) for line in dialogue] for dialogue in found if isinstance(dialogue, list)]


def running_text(tokenizer: object, length: int, subjects: Sequence[str] = SUBJECTS) -> Tensor:
    """The first `length` tokens of the corpus as one prompt, int64 [1, length]."""
    lines = " ".join(line for subject in subjects for dialogue in dialogues(subject) for line in dialogue)
    tokens = tokenizer(lines, truncation=True, max_length=length)["input_ids"]
    return torch.tensor([tokens])


def small_talk(subjects: Sequence[str] = SMALL_TALK, longest: int = LONGEST_LINE) -> list[tuple[str, str]]:
    """All pairs of a line and its answer, (question, answer), if both are short.

    Of several answers to the same line the first is kept; case and punctuation are ignored in the comparison.

    Args:
        subjects: files of the corpus.
        longest: maximum number of words in a line.

    Example:
        >>> small_talk()[0]
        ('Hello', 'Hi')
    """
    answers: dict[str, tuple[str, str]] = {}
    lines = (pair for subject in subjects for dialogue in dialogues(subject) for pair in itertools.pairwise(dialogue))
    for question, answer in ((" ".join(one.split()), " ".join(other.split())) for one, other in lines):
        if max(len(question.split()), len(answer.split())) <= longest and question.isascii() and answer.isascii():
            answers.setdefault(canonical(question), (question, answer))
    return list(answers.values())


def canonical(line: str) -> str:
    """A line in lower case and without punctuation, to compare lines.

    Example:
        >>> canonical("What's up?")
        'whats up'
    """
    return " ".join("".join(c for c in line.lower() if c.isalnum() or c.isspace()).split())


def _folder() -> Path:
    import chatterbot_corpus.corpus

    return Path(chatterbot_corpus.corpus.DATA_DIRECTORY) / "english"
