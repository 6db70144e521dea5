"""Requests of lm-evaluation-harness, checked and encoded: what the model is to do for each, and what that will cost."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

LIKELIHOOD, ROLLING, GENERATION = "loglikelihood", "loglikelihood_rolling", "generate_until"
NAMES = {LIKELIHOOD: "log-likelihoods", ROLLING: "perplexities", GENERATION: "texts"}  # of what they ask for
KINDS = tuple(NAMES)


class Work(NamedTuple):
    """What a request is for the model.

    content: a Target; the tokens before a text, those of the text, and the seed; or a GenerationRequest.
    forwards: rows of the model, estimated.
    columns: tokens of a row.
    tokens: those of the target or, at most, of the answer.
    """

    content: Any
    forwards: int
    columns: int
    tokens: int

    @property
    def positions(self) -> int:
        """Token positions that run through the model, estimated."""
        return self.forwards * self.columns


class Job(NamedTuple):
    """A request.

    task: its name.
    arguments: the request's own.
    seed: of masks and noise.
    alone: whether it is the only request of its document, as no choice of a question is.
    work: for the model.
    """

    task: str
    arguments: tuple[Any, ...]
    seed: int
    alone: bool
    work: Work


def jobs_of(requests: Sequence[Any], run_seed: int, encode: Callable[[tuple[Any, ...], int, bool], Work]) -> list[Job]:
    """A job for each request.

    Args:
        requests: Instances of lm-evaluation-harness. It gives one that is to be answered several times as often, and in
            a run of several processes perhaps once more, to make their numbers even.
        run_seed: of the run.
        encode: from a request's arguments, its seed, and whether it is alone, to the work.

    Raises:
        TypeError, ValueError: a request breaks a rule; the message has its task and document.
    """
    seen: Counter[int] = Counter()
    of_document = Counter((request.task_name, request.doc_id) for request in {id(r): r for r in requests}.values())
    jobs = []
    for request in requests:
        task = request.task_name or "a request"
        repeat = seen[id(request)] % (request.repeats or 1)
        seen[id(request)] += 1
        document = request.arguments if request.doc_id is None else request.doc_id
        seed = seed_of(run_seed, task, document, repeat)
        alone = request.doc_id is None or of_document[request.task_name, request.doc_id] == 1
        try:
            work = encode(request.args, seed, alone)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{task}, document {request.doc_id}: {error}") from error
        jobs.append(Job(task, request.args, seed, alone, work))
    return jobs


def seed_of(run_seed: int, task: str, document: Any, repeat: int) -> int:
    """The 63-bit seed of a request. The choices of a question share theirs, and no other request has it.

    Example:
        >>> seed_of(1234, "arc_easy", 7, 0) == seed_of(1234, "arc_easy", 7, 0) != seed_of(1234, "arc_easy", 8, 0)
        True
    """
    content = repr((run_seed, task, document, repeat)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1
