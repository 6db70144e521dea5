"""Texts for requests of unequal length: sorted, batched, and each ended as soon as its text is complete."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from dllm.core.eval.stopping import Stopping
from dllm.core.samplers import (
    BaseSampler,
    BaseSamplerConfig,
    DiffusionGemmaSampler,
    DiffusionGemmaSamplerConfig,
    SampledRow,
    canvas,
)
from dllm.core.samplers.config import at_least
from dllm.fast.compiled.decision import repeated
from dllm.fast.model import position_limit
from dllm_kernels import philox

Sampler = BaseSampler | DiffusionGemmaSampler
SamplerConfig = BaseSamplerConfig | DiffusionGemmaSamplerConfig

_log = logging.getLogger("dllm")


class GenerationRequest(NamedTuple):
    """One text to generate.

    prompt: token ids, without mask tokens.
    until: stop strings; the text ends before the one that is complete first. Empty ones never stop.
    seed: of the noise, 64 bits.
    overrides: settings of the sampler for this request, in place of those of the configuration. `steps` follows
        `max_new_tokens` unless it is given too (:meth:`dllm.core.samplers.BaseSamplerConfig.with_length`).
    """

    prompt: Sequence[int]
    until: Sequence[str] = ()
    seed: int = 0
    overrides: Mapping[str, Any] = MappingProxyType({})


class Generated(NamedTuple):
    """What was generated for a request.

    text: up to the end of the answer.
    tokens: generated tokens up to that end, with those that end it.
    forwards: runs of the model that the row took part in.
    seconds: the row's share of the wall time, s: that of a forward is divided among its rows, so that all add up to the
        time of the call.
    cut: tokens that the prompt lost on the left, because the model has no room for more.
    """

    text: str
    tokens: int
    forwards: int
    seconds: float
    cut: int = 0


class Job(NamedTuple):
    """A checked request.

    number: its place among the requests.
    prompt: int64 vector, cut to the model's room.
    stopping: its ends.
    seed: of the noise.
    config: of the sampler.
    cut: as :class:`Generated`.
    """

    number: int
    prompt: Tensor
    stopping: Stopping
    seed: int
    config: SamplerConfig
    cut: int

    @property
    def columns(self) -> int:
        """Columns of its row."""
        return len(self.prompt) + self.config.max_new_tokens


def generate_requests(
    sampler: Sampler,
    requests: Sequence[GenerationRequest],
    config: SamplerConfig | None = None,
    *,
    batch_size: int,
    keep_special_tokens: bool = False,
    max_length: int | None = None,
    on_generated: Callable[[int, Generated], object] | None = None,
) -> list[Generated]:
    """Generate a text for each request.

    Requests of equal settings run together; the longest come first, so that memory is at its highest at the start. A
    row ends at an end of sequence or of turn, or when its text holds a stop string, costs nothing more, and leaves its
    place to the next request (:meth:`dllm.core.samplers.BaseSampler.sample_many`).
    A request's text, tokens and forwards do not depend on the batch size, on its order or on the other requests; on a
    GPU a row may take part in a few forwards after its end.

    Args:
        sampler: whose tokenizer has an EOS.
        requests: in any order.
        config: of the sampler; its defaults if None. `stop_at_eos` is on, unless a request overrides it; `return_dict`
            and `keep_histories` are not used.
        batch_size: rows that run together, at most.
        keep_special_tokens: texts keep special tokens, also the one that ends a turn (:class:`Stopping`).
        max_length: most tokens of prompt and answer together; None: the positions of the model. A longer prompt loses
            its first tokens; that is logged and counted in `Generated.cut`.
        on_generated: called with the number of a request and its result, as soon as it is finished: of an interrupted
            call that is what is left.

    Returns:
        The results, in the order of the requests.

    Raises:
        TypeError, ValueError: an argument or a request breaks a rule; the message has the request's number. The model
            has not run then.
        RuntimeError: as :meth:`dllm.core.samplers.BaseSampler.sample`.

    Example:
        >>> from dllm.core.samplers import MDLMSampler
        >>> from dllm.demo.shipped import load_shipped
        >>> model, tokenizer = load_shipped()
        >>> asked = [f"[Question]\\nWhat is {n} * 4?\\n[/Question]\\n\\n[Answer]\\n" for n in (3, 12)]
        >>> requests = [GenerationRequest(tokenizer(text, add_special_tokens=False).input_ids) for text in asked]
        >>> sampler, settings = MDLMSampler(model, tokenizer), dict(max_new_tokens=16, steps=16, block_size=16)
        >>> done = generate_requests(sampler, requests, sampler.config_class(**settings), batch_size=2)
        >>> [one.text.strip() for one in done]
        ['3 * 4 = 12.', '12 * 4 = 48.']
    """
    at_least(1, "batch_size", batch_size)
    if on_generated is not None and not callable(on_generated):
        raise TypeError(f"on_generated must be callable, got {type(on_generated).__name__}")
    jobs = _checked_jobs(sampler, list(requests), config, max_length, keep_special_tokens)
    results: dict[int, Generated] = {}

    def keep(job: Job, row: SampledRow) -> None:
        results[job.number] = _read(job, row)
        if on_generated is not None:
            on_generated(job.number, results[job.number])

    for group in _groups(jobs):
        with repeated(-(-len(group) // batch_size)):
            _run(sampler, group, batch_size, keep)
    return [results[number] for number in range(len(results))]


def _checked_jobs(
    sampler: Sampler,
    requests: Sequence[GenerationRequest],
    config: SamplerConfig | None,
    max_length: int | None,
    keep_special_tokens: bool,
) -> list[Job]:
    """Check everything that can be checked without running the model."""
    config = sampler.config_class() if config is None else config
    if not isinstance(config, sampler.config_class):
        raise TypeError(f"config must be a {sampler.config_class.__name__}, got {type(config).__name__}")
    if max_length is not None:
        at_least(2, "max_length", max_length)
    limit = _most_columns(sampler, max_length)
    mask_id = canvas.mask_token(sampler.model, sampler.tokenizer) if sampler.masks else None
    settings: dict[str, SamplerConfig] = {}
    jobs = []
    for number, request in enumerate(requests):
        try:
            key = _settings_key(request.overrides)
            if key not in settings:
                settings[key] = _settings(sampler, config, request.overrides, limit)
            jobs.append(_job(sampler, number, request, settings[key], limit, mask_id, keep_special_tokens))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"request {number}: {error}") from error
    if mask_id is not None:
        canvas.check_rows(sampler.model, [job.prompt for job in jobs], mask_id)
    for group in _groups(jobs):
        sampler.check(
            [group[0].prompt, group[-1].prompt] if sampler.masks else [job.prompt for job in group], group[0].config
        )
    _log_cuts(jobs)
    return jobs


def _most_columns(sampler: Sampler, max_length: int | None) -> int | None:
    """The most columns of a row; None if there is no limit."""
    positions, is_hard = position_limit(sampler.model)
    if max_length is None:
        return positions
    return min(max_length, positions) if is_hard else max_length


def _settings_key(overrides: Mapping[str, Any]) -> str:
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a mapping of settings, got {overrides!r}")
    return repr(sorted(overrides.items(), key=lambda item: str(item[0])))


def _settings(
    sampler: Sampler, config: SamplerConfig, overrides: Mapping[str, Any], limit: int | None
) -> SamplerConfig:
    """The sampler's settings for one kind of request, checked with an empty prompt."""
    stops = {"stop_at_eos": True} if hasattr(config, "stop_at_eos") else {}  # others always stop there
    overrides = stops | dict(overrides)
    new = overrides.get("max_new_tokens", config.max_new_tokens)
    if new is None:
        raise ValueError("max_new_tokens must be a number, got None")
    at_least(1, "max_new_tokens", new)
    if limit is not None and new >= limit:
        raise ValueError(f"max_new_tokens must be less than the {limit} tokens of prompt and answer, got {new}")
    config = dataclasses.replace(config.with_length(new), return_dict=True, keep_histories=False)
    sampler.check([[]] if sampler.masks else [], config, **overrides)
    return dataclasses.replace(config, **overrides)


def _job(
    sampler: Sampler,
    number: int,
    request: GenerationRequest,
    config: SamplerConfig,
    limit: int | None,
    mask_id: int | None,
    keep_special_tokens: bool,
) -> Job:
    (prompt,) = canvas.token_rows([request.prompt])
    if mask_id is not None and bool((prompt == mask_id).any()):
        raise ValueError("a prompt must not hold the mask token, got one")
    if isinstance(request.until, str) or not all(isinstance(stop, str) for stop in request.until):
        raise TypeError(f"until must be a list of stop strings, got {request.until!r}")
    stopping = Stopping(sampler.tokenizer, request.until, keep_special_tokens=keep_special_tokens)
    cut = 0 if limit is None else max(0, len(prompt) + config.max_new_tokens - limit)
    return Job(number, prompt[cut:], stopping, philox.as_int64(request.seed), config, cut)


def _log_cuts(jobs: Sequence[Job]) -> None:
    cuts = [job.cut for job in jobs if job.cut]
    if cuts:
        _log.warning(
            "%d of %d prompts leave no room for their answers and are cut on the left, by up to %d tokens",
            len(cuts),
            len(jobs),
            max(cuts),
        )


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of the same settings together, the longest first."""
    groups: dict[int, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: -job.columns):
        groups.setdefault(id(job.config), []).append(job)
    return list(groups.values())


def _run(sampler: Sampler, group: Sequence[Job], batch_size: int, on_row: Callable[[Job, SampledRow], object]) -> None:
    """Denoise the jobs of equal settings, `batch_size` at a time."""
    sampler.sample_many(
        [job.prompt for job in group],
        group[0].config,
        rows=batch_size,
        seed=[job.seed for job in group],
        finished=lambda row, tokens: group[row].stopping.is_over(tokens),
        on_row=lambda number, row: on_row(group[number], row),
    )


def _read(job: Job, row: SampledRow) -> Generated:
    """What a row answers."""
    answer = job.stopping.read(row.tokens[len(job.prompt) :].tolist())
    return Generated(answer.text, answer.tokens, row.forwards, row.seconds, job.cut)
