"""The bundled model's vocabulary is trained once and its corpus read once, however many runs begin with them."""

from __future__ import annotations

import copy
import functools

import pytest

from dllm.demo.training import dialogues, lessons

build_tokenizer = lessons.build_tokenizer
trained = functools.cache(lambda texts, *sizes: build_tokenizer(texts, *sizes))
read = functools.cache(dialogues.dialogues)


@pytest.fixture(autouse=True, scope="module")
def one_vocabulary():
    """Each caller gets a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "build_tokenizer", lambda texts, *sizes: copy.deepcopy(trained(tuple(texts), *sizes)))
        patch.setattr(dialogues, "dialogues", lambda subject: copy.deepcopy(read(subject)))
        yield
