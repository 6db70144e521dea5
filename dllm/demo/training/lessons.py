"""The training data of the bundled model: an endless, seeded stream of conversations as token ids.

A row is the conversation so far (never masked), then the answer, then end-of-answer tokens up to the width of the
batch, from which the model learns to end an answer.
"""

from __future__ import annotations

import copy
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
USUAL_LENGTH = 96  # tokens of a word problem and the turns before it, except in every LONG_EVERY-th batch
LONG_EVERY = 16
DRILL_FROM, DRILL_LENGTH = 1400, 24  # from this step on there is a third batch, of sums, which are learnt last
TAIL_FROM, TAIL_EVERY = 2000, 2  # from this step on every other word problem is masked from an equals sign on
OTHER_ADDENDS_FROM = 2400  # from this step on tails that begin at the final sum have addends of other problems
STEPS = 3900  # length of the run that the three steps above are for; `Lessons` scales them to other lengths
SHORT_LENGTHS = (32, 48, 64, 80)  # tokens of all other conversations; one of these per batch
PROBLEM_SHARE = 0.7
TURN = "[Question]\n{}\n[/Question]\n\n[Answer]\n"
END_OF_TURN = "\n[/Answer]\n\n"

Turn = tuple[str, str]  # question, answer
Draw = Callable[[random.Random], Turn]


def vocabulary() -> object:
    """The tokenizer, trained on the problems and the small talk: once in a process, and a copy for each caller."""
    return copy.deepcopy(_trained())


@functools.cache
def _trained() -> object:
    rng = random.Random(0)
    drawn = [problems.draw(rng, problems.split_numbers()[0], problems.PHRASINGS) for _ in range(3000)]
    texts = [text for problem in drawn for text in (problem.question, problem.solution)]
    texts += [text for turn in small_talk() for text in turn] * 3
    return build_tokenizer(texts, VOCABULARY, problems.LARGEST_NUMBER, MAX_LENGTH)


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations as token ids.

    Attributes:
        tokens: int64 [B, L], the conversations.
        answer: bool [B, L], True where a token may be masked: the last answer and the end-of-answer tokens after it.
        tail: int64 [B], the first column of a tail, all of which is masked, as when a solution is written from left to
            right; -1 where masks are drawn token by token.
    """

    tokens: Tensor
    answer: Tensor
    tail: Tensor


class Lessons:
    """The batches of each step: word problems, other conversations, and later sums.

    70 % of the rows of the first two batches are word problems; the others are single steps of one, or small talk.
    Item n depends on n and the seed only, so a resumed run continues exactly.

    The final sum of a problem is learnt last. Token-by-token masking seldom trains it: both addends must be visible
    while the sum and the answer that repeats it are masked. Hence the batch of sums, and the tails (`Batch.tail`).

    Args:
        tokenizer: from :func:`vocabulary`.
        batch_size: conversations per step, without the batch of sums.
        seed: of the stream.
        steps: of the run; sums and tails begin at the same fraction of it as in a run of STEPS.

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
            self._pad([self._row(rng, self._problem, wide) for _ in range(self.n_problems)], least=0),
            self._pad([self._row(rng, others[i % 2], narrow) for i in range(n_others)], least=narrow),
        ]
        if self._has_begun(TAIL_FROM, number):
            self._add_tails(
                random.Random(f"{self.seed} {number} tail"), batches[0], self._has_begun(OTHER_ADDENDS_FROM, number)
            )
        if self._has_begun(DRILL_FROM, number):
            sums = functools.partial(problems.arithmetic, weights=(0, 1, 0))
            drill = [self._row(rng, sums, DRILL_LENGTH) for _ in range(self.batch_size)]
            batches.append(self._pad(drill, least=DRILL_LENGTH))
        return batches

    def _has_begun(self, start: int, number: int) -> bool:
        """Whether step `number` of this run is at or after step `start` of a run of STEPS steps."""
        return number * STEPS >= start * self.steps

    def _add_tails(self, rng: random.Random, batch: Batch, other_addends: bool) -> None:
        """Set tails that begin after an equals sign: half of them after the last one, that of the final sum."""
        equals = (batch.tokens == self.tokenizer.convert_tokens_to_ids("Ġ=")) & batch.answer
        for row in range(0, len(batch.tokens), TAIL_EVERY):
            *others, last = equals[row].nonzero().flatten().tolist()
            start = rng.choice((last, rng.choice(others)))
            batch.tail[row] = start + 1
            if other_addends and start == last:
                self._replace_addends(rng, batch.tokens[row], others[0], others[-1], last)

    def _replace_addends(self, rng: random.Random, tokens: Tensor, first: int, second: int, last: int) -> None:
        """Replace, in place, the products after the equals signs `first` and `second`, and their sum after `last`.

        The model knows the products by then. With products of other problems the sum follows only from adding the
        numbers that are written, not from memorizing the problem.
        """
        one, two = (numbers.rate * numbers.hours for numbers in rng.sample(self.numbers, 2))
        total = tokens[last + 1].clone()
        tokens[first + 1] = tokens[last - 3] = self._ids(str(one))[0]
        tokens[second + 1] = tokens[last - 1] = self._ids(str(two))[0]
        tokens[last + 1 :][tokens[last + 1 :] == total] = self._ids(str(one + two))[0]

    def _row(self, rng: random.Random, draw: Draw, limit: int) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, with up to three earlier turns if they fit, and of the answer with its end token."""
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
        """A line and its answer; the line sometimes in lower case or without punctuation, as people type."""
        question, answer = rng.choice(self.talk)
        return rng.choice((str, str, str.lower, canonical))(question), answer

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    def _pad(self, rows: Sequence[tuple[list[int], list[int]]], least: int) -> Batch:
        """Pad the rows with end-of-answer tokens to the longest of them, and to at least `least` columns."""
        end = self.tokenizer.eos_token_id
        width = max([least, *(len(prompt) + len(answer) for prompt, answer in rows)])
        tokens = [(prompt + answer + [end] * width)[:width] for prompt, answer in rows]
        prompts = torch.tensor([len(prompt) for prompt, _ in rows], dtype=torch.int64)
        answer = torch.arange(width) >= prompts[:, None]
        tail = torch.full((len(rows),), -1)
        return Batch(torch.tensor(tokens, dtype=torch.int64).view(len(rows), width), answer, tail)
