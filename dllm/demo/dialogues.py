"""The demo's text: English dialogues of the package chatterbot-corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SUBJECTS = ("conversations", "food", "science", "computers", "literature")


def questions(count: int, seed: int, subjects: Sequence[str] = SUBJECTS) -> list[str]:
    """Opening lines of that many dialogues, drawn with `seed`."""
    openings = [dialogue[0] for subject in subjects for dialogue in dialogues(subject)]
    asked = sorted({line.strip() for line in openings if line.strip().endswith("?")})
    return random.Random(seed).sample(asked, count)


def dialogues(subject: str) -> list[list[str]]:
    """All dialogues of one file of the corpus, each a list of lines."""
    import chatterbot_corpus.corpus
    import yaml

    path = Path(chatterbot_corpus.corpus.DATA_DIRECTORY) / "english" / f"{subject}.yml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    return [[str(line) for line in dialogue] for dialogue in found if isinstance(dialogue, list)]


def running_text(tokenizer: object, length: int, subjects: Sequence[str] = SUBJECTS) -> Tensor:
    """int64 [1, length]: the beginning of the corpus as one prompt."""
    lines = " ".join(line for subject in subjects for dialogue in dialogues(subject) for line in dialogue)
    tokens = tokenizer(lines, truncation=True, max_length=length)["input_ids"]
    return torch.tensor([tokens])
