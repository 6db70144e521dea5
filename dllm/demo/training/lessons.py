"""What the shipped model is taught: an endless, seeded stream of conversations as token ids.

A row is the conversation so far (never masked), then the answer, then end-of-answer tokens up to the width of the
batch: the model learns to end, too.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.demo.training import problems
from dllm.demo.training.dialogues import canonical, small_talk
from dllm.demo.training.tokenizer import build_tokenizer

VOCABULARY = 2048
MAX_LENGTH = 192  # tokens of a conversation, its last answer included
USUAL_LENGTH = 96  # of word problems; histories that do not fit are left out, but for every LONG_EVERY-th batch
LONG_EVERY = 16
DRILL_FROM, DRILL_LENGTH = 1400, 24  # from this number on as many sums besides: they are learnt last
TAIL_FROM, TAIL_EVERY = 2000, 2  # from this number on every other word problem is masked from an equals sign on
OTHER_ADDENDS_FROM = 2400  # from this number on tails that begin with the sum follow addends of another problem
STEPS = 3900  # of the run that the three numbers are for; `Lessons` stretches them to the length of another
SHORT_LENGTHS = (32, 48, 64, 80)  # of the rest, one of these for a batch
PROBLEM_SHARE = 0.7
TURN = "[Question]\n{}\n[/Question]\n\n[Answer]\n"
END_OF_TURN = "\n[/Answer]\n\n"

Turn = tuple[str, str]  # question, answer
Draw = Callable[[random.Random], Turn]


def vocabulary() -> object:
    """The tokenizer, learnt from the problems and the small talk."""
    rng = random.Random(0)
    drawn = [problems.draw(rng, problems.split_numbers()[0], problems.PHRASINGS) for _ in range(3000)]
    texts = [text for problem in drawn for text in (problem.question, problem.solution)]
    texts += [text for turn in small_talk() for text in turn] * 3
    return build_tokenizer(texts, VOCABULARY, problems.LARGEST_NUMBER, MAX_LENGTH)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids.

    Attributes:
        tokens: int64 [B, L], the conversations.
        answer: bool [B, L], where a token may be masked: the last answer and the end-of-answer tokens after it.
        tail: int64 [B], the column from which on all of the answer is masked, as when a solution is written from left
            to right; -1 where masks are drawn token by token.
    """

    tokens: Tensor
    answer: Tensor
    tail: Tensor


class Lessons:
    """Batches by number: one of long conversations and one of short ones, later one of sums besides.

    Seven in ten rows of the first two ask for a word problem, the others for a step of one or for small talk. Number n
    is the same whatever was asked for before, so a resumed run misses nothing.

    The sum at the end is what is learnt last. Masked token by token it is seldom a question: both addends must be
    visible, and itself and the answer, which repeats it, hidden. Hence the sums besides, and the tails (`Batch.tail`).

    Args:
        tokenizer: of :func:`vocabulary`.
        batch_size: conversations of a step, sums not counted.
        seed: of the stream.
        steps: of the run; its lessons begin at the same share of it as in one of STEPS.

    Example:
        >>> lessons = Lessons(vocabulary(), batch_size=10, seed=0)
        >>> [len(batch.tokens) for batch in lessons[7]], [len(batch.tokens) for batch in lessons[1400]]
        ([7, 3], [7, 3, 10])
    """

    def __init__(self, tokenizer: object, batch_size: int, seed: int, *, steps: int = STEPS):
        self.tokenizer, self.seed, self.steps = tokenizer, seed, steps
        self.batch_size, self.n_problems = batch_size, round(PROBLEM_SHARE * batch_size)
        self.talk = small_talk()
        self.numbers, _ = problems.split_numbers()

    def __getitem__(self, number: int) -> list[Batch]:
        rng = random.Random(f"{self.seed} {number}")
        wide = MAX_LENGTH if number % LONG_EVERY == LONG_EVERY - 1 else USUAL_LENGTH
        narrow = rng.choice(SHORT_LENGTHS)
        others, n_others = (problems.arithmetic, self._small_talk), self.batch_size - self.n_problems
        batches = [
            self._batch([self._row(rng, self._problem, wide) for _ in range(self.n_problems)], least=0),
            self._batch([self._row(rng, others[i % 2], narrow) for i in range(n_others)], least=narrow),
        ]
        if self._past(number, TAIL_FROM):
            self._cut(random.Random(f"{self.seed} {number} tail"), batches[0], self._past(number, OTHER_ADDENDS_FROM))
        if self._past(number, DRILL_FROM):
            sums = functools.partial(problems.arithmetic, weights=(0, 1, 0))
            drill = [self._row(rng, sums, DRILL_LENGTH) for _ in range(self.batch_size)]
            batches.append(self._batch(drill, least=DRILL_LENGTH))
        return batches

    def _past(self, number: int, start: int) -> bool:
        """Whether what a run of STEPS steps does from `start` on is done by now."""
        return number * STEPS >= start * self.steps

    def _cut(self, rng: random.Random, batch: Batch, other_addends: bool) -> None:
        """Choose tails that begin behind an equals sign; half of them behind the last one, that of the sum."""
        equals = (batch.tokens == self.tokenizer.convert_tokens_to_ids("Ġ=")) & batch.answer
        for row in range(0, len(batch.tokens), TAIL_EVERY):
            *others, last = equals[row].nonzero().flatten().tolist()
            start = rng.choice((last, rng.choice(others)))
            batch.tail[row] = start + 1
            if other_addends and start == last:
                self._replace_addends(rng, batch.tokens[row], others[0], others[-1], last)

    def _replace_addends(self, rng: random.Random, tokens: Tensor, first: int, second: int, last: int) -> None:
        """Other products behind the equals signs `first` and `second`, and their sum behind `last`, in place.

        Products are known by then. With these, nothing but adding what is written gives the sum: a problem's four
        numbers can be learnt by heart, and those held out cannot.
        """
        one, two = (numbers.rate * numbers.hours for numbers in rng.sample(self.numbers, 2))
        total = tokens[last + 1].clone()
        tokens[first + 1] = tokens[last - 3] = self._ids(str(one))[0]
        tokens[second + 1] = tokens[last - 1] = self._ids(str(two))[0]
        tokens[last + 1 :][tokens[last + 1 :] == total] = self._ids(str(one + two))[0]

    def _row(self, rng: random.Random, draw: Draw, limit: int) -> tuple[list[int], list[int]]:
        """Token ids of the conversation so far, and of the answer with the token that ends it."""
        question, answer = draw(rng)
        prompt, target = self._ids(TURN.format(question)), self._ids(answer + END_OF_TURN)
        for _ in range(rng.choice((0, 0, 0, 1, 2, 3))):
            question, answer = rng.choice((draw, self._small_talk))(rng)
            earlier = self._ids(TURN.format(question) + answer + END_OF_TURN)
            if len(earlier) + len(prompt) + len(target) > limit:
                break
            prompt = earlier + prompt
        return prompt, target

    def _problem(self, rng: random.Random) -> Turn:
        problem = problems.draw(rng, self.numbers, problems.PHRASINGS)
        return problem.question, problem.solution

    def _small_talk(self, rng: random.Random) -> Turn:
        """People do not always type capitals and question marks."""
        question, answer = rng.choice(self.talk)
        return rng.choice((str, str, str.lower, canonical))(question), answer

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    def _batch(self, rows: Sequence[tuple[list[int], list[int]]], least: int) -> Batch:
        """The rows, filled up with end-of-answer tokens to the longest of them and to the width `least`."""
        end = self.tokenizer.eos_token_id
        width = max([least, *(len(prompt) + len(answer) for prompt, answer in rows)])
        tokens = [(prompt + answer + [end] * width)[:width] for prompt, answer in rows]
        prompts = torch.tensor([len(prompt) for prompt, _ in rows], dtype=torch.int64)
        answer = torch.arange(width) >= prompts[:, None]
        tail = torch.full((len(rows),), -1)
        return Batch(torch.tensor(tokens, dtype=torch.int64).view(len(rows), width), answer, tail)
