"""Write the English dialogues of the package chatterbot-corpus as conversations, one JSON object a line.

    python examples/bert/dialogues.py data/dialogues

A dialogue gives a conversation for each line that is an answer (the second, fourth, ...), with all lines before it. Of
conversations with the same words before the answer the first is kept: to "My computer won't turn on" the corpus has 105
answers. One dialogue in ten goes to test.jsonl, with all its conversations, the others to train.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from dllm.demo.training.dialogues import canonical, dialogues, subjects
from dllm.exits import exit_code

HELD_OUT_SHARE = 0.1
SEED = 2026
ROLES = ("user", "assistant")
Conversation = list[dict[str, str]]


def conversations(lines: list[str]) -> Iterator[Conversation]:
    """The messages up to each answer of a dialogue."""
    messages = [{"role": ROLES[i % 2], "content": " ".join(line.split())} for i, line in enumerate(lines)]
    return (messages[: answer + 1] for answer in range(1, len(messages), 2))


def first_answers() -> list[list[Conversation]]:
    """All dialogues that ask something new, each as conversations."""
    kept, asked = [], set()
    for subject in subjects():
        for lines in dialogues(subject):
            fresh = []
            for conversation in conversations(lines):
                words = tuple(canonical(message["content"]) for message in conversation[:-1])
                if words not in asked:
                    asked.add(words)
                    fresh.append(conversation)
            if fresh:
                kept.append(fresh)
    return kept


def main(folder: Path) -> None:
    """Write train.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    found = first_answers()
    random.Random(SEED).shuffle(found)
    held_out = round(HELD_OUT_SHARE * len(found))
    for name, part in (("test", found[:held_out]), ("train", found[held_out:])):
        rows = [json.dumps({"messages": conversation}) for dialogue in part for conversation in dialogue]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(rows)} conversations of {len(part)} dialogues")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where train.jsonl and test.jsonl go")
    folder = parser.parse_args().folder
    sys.exit(exit_code("dialogues.py", lambda: main(folder)))
