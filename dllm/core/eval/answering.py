"""Answers of jobs: read from the journal or had from the model, and written down as soon as they are there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from dllm.core.eval.config import EvalSettings
from dllm.core.eval.generation import generate_requests
from dllm.core.eval.jobs import GENERATION, LIKELIHOOD, Job
from dllm.core.eval.journal import Entry, Journal, key_of
from dllm.core.eval.progress import Progress
from dllm.core.likelihood import log_likelihoods, rolling_log_likelihoods
from dllm.core.samplers import BaseSampler

# settings on which no answer depends, so that a run may be resumed with others
_INDIFFERENT = {
    ("eval", "device"),
    ("eval", "batch_size"),  # that of a published likelihood is among its own settings
    ("eval", "journal"),
    ("eval", "seed"),  # each request's own is in its key
    ("likelihood", "tokens_per_forward"),
    ("sampler", "cuda_graph"),
    ("sampler", "compile_body"),  # changes no more than rounding, as another number of rows does
    ("likelihood", "compile_body"),
}


class Answering:
    """Answers jobs by a model, and keeps the answers.

    Args:
        sampler: of the model, with its tokenizer.
        mask_id: the mask token; None of models without masks.
        settings: of the evaluation.
        max_length: tokens of a row, at most.
        fingerprint: of the model; see :func:`dllm.core.eval.fingerprint.fingerprint`.
        journal: where answers are kept.
        on_answer: called for each job with its kind, the job, its answer, and whether that was in the journal before.

    Example:
        >>> from dllm.core.eval.config import read_settings
        >>> from dllm.core.eval.jobs import Work
        >>> from dllm.core.eval.models import model_named
        >>> from dllm.core.likelihood import Target
        >>> from dllm.demo.shipped import load_shipped
        >>> model, tokenizer = load_shipped()
        >>> table = model_named("bert")
        >>> answering = Answering(
        ...     table.sampler(model, tokenizer),
        ...     tokenizer.mask_token_id,
        ...     read_settings(table, {"pretrained": "some/model"}),
        ...     max_length=64,
        ...     fingerprint="",
        ...     journal=Journal(None),
        ...     on_answer=lambda kind, job, entry, resumed: None,
        ... )
        >>> job = Job("sums", ("6 * 7 =", " 42"), 0, False, Work(Target([5, 6], [7]), forwards=1, columns=3, tokens=1))
        >>> ((value, greedy),) = answering.answers(LIKELIHOOD, [job])
        >>> value < 0, greedy
        (True, False)
    """

    def __init__(
        self,
        sampler: BaseSampler,
        mask_id: int | None,
        settings: EvalSettings,
        *,
        max_length: int,
        fingerprint: str,
        journal: Journal,
        on_answer: Callable[[str, Job, Entry, bool], object],
    ):
        self.sampler, self.mask_id, self.settings, self.max_length = sampler, mask_id, settings, max_length
        self.fingerprint, self.journal, self.on_answer = fingerprint, journal, on_answer

    def answers(
        self, kind: str, jobs: Sequence[Job], progress: Progress | None = None, *, shown: bool = False
    ) -> list[Any]:
        """The answer of each job. Each is in the journal as soon as it is there.

        Args:
            kind: of the jobs, a type of request.
            jobs: equal ones are answered once.
            progress: the bar of a run of several tasks; None: these jobs have a bar of their own, if `shown`.
        """
        keys = self.keys(kind, jobs)
        different = dict(zip(keys, jobs, strict=True))
        for key, job in different.items():
            if (entry := self.journal.read(key)) is not None:
                self.on_answer(kind, job, entry, True)
        unanswered = {key: job for key, job in different.items() if self.journal.read(key) is None}
        if unanswered:
            work = sum(job.work.positions for job in unanswered.values())
            own = Progress({kind: work}, shown=shown) if progress is None else None
            self._run(kind, list(unanswered), list(unanswered.values()), progress or own)
            if own is not None:
                own.close()
        return [self.journal.read(key).result for key in keys]

    def is_answered(self, kind: str, jobs: Sequence[Job]) -> list[bool]:
        """Whether the journal has the answer of each job."""
        return [self.journal.read(key) is not None for key in self.keys(kind, jobs)]

    def keys(self, kind: str, jobs: Sequence[Job]) -> list[str]:
        """The key of each job: of the request and of everything that its answer depends on."""
        parts = self.settings.as_dict()
        del parts["model"], parts["likelihood" if kind == GENERATION else "sampler"]
        settings = {
            part: {name: value for name, value in values.items() if (part, name) not in _INDIFFERENT}
            for part, values in parts.items()
        }
        checked = {True: settings | {"greedy": True}, False: settings}
        return [
            key_of(kind, job.arguments, job.seed, checked[self._checks_greedy(kind, job)], self.fingerprint)
            for job in jobs
        ]

    def _checks_greedy(self, kind: str, job: Job) -> bool:
        return kind == LIKELIHOOD and self.settings.eval.checks_greedy(job.alone)

    def _run(self, kind: str, keys: Sequence[str], jobs: Sequence[Job], progress: Progress) -> None:
        """Answer jobs by the model."""

        def done(number: int, entry: Entry) -> None:
            self.journal.write(keys[number], entry)
            self.on_answer(kind, jobs[number], entry, False)
            progress.add(kind, jobs[number].work.positions, jobs[number].task)

        progress.begin(kind)
        if kind == GENERATION:
            self._generate(jobs, done)
        else:
            self._estimate(kind, jobs, done)

    def _generate(self, jobs: Sequence[Job], done: Callable[[int, Entry], object]) -> None:
        def generated(number: int, text: Any) -> None:
            done(number, Entry(text.text, text.forwards, text.tokens, text.seconds))

        generate_requests(
            self.sampler,
            [job.work.content for job in jobs],
            self.settings.sampler,
            batch_size=self.settings.eval.batch_size,
            keep_special_tokens=self.settings.eval.escape_until,
            max_length=self.max_length,
            on_generated=generated,
        )

    def _estimate(self, kind: str, jobs: Sequence[Job], done: Callable[[int, Entry], object]) -> None:
        """Jobs of equal `check_greedy`, or of equal tokens before the text, run together."""
        model, config = self.sampler.model, self.settings.likelihood
        last = time.perf_counter()

        def estimated(number: int, estimate: Any) -> None:
            nonlocal last
            now = time.perf_counter()
            result, tokens = [estimate.log_likelihood, bool(estimate.greedy)], jobs[number].work.tokens
            done(number, Entry(result, estimate.rows, tokens, now - last, estimate.stderr))
            last = now

        contents = [job.work.content for job in jobs]
        of_likelihood = kind == LIKELIHOOD
        commons = [self._checks_greedy(kind, job) if of_likelihood else job.work.content[0] for job in jobs]
        for common, numbers in _by_value(commons).items():

            def of_group(number: int, estimate: Any, numbers: list[int] = numbers) -> None:
                estimated(numbers[number], estimate)

            of = dict(tokenizer=self.sampler.tokenizer, mask_id=self.mask_id, on_estimate=of_group)
            chosen = [contents[number] for number in numbers]
            if of_likelihood:
                log_likelihoods(model, chosen, dataclasses.replace(config, check_greedy=common), **of)
            else:
                _, texts, seeds = zip(*chosen, strict=True)
                of |= dict(window=self.max_length, prefix=common, seeds=seeds)
                rolling_log_likelihoods(model, texts, config, **of)


def _by_value(values: Sequence[Any]) -> dict[Any, list[int]]:
    """The numbers of equal values."""
    groups: dict[Any, list[int]] = {}
    for number, value in enumerate(values):
        groups.setdefault(value, []).append(number)
    return groups
