"""The models of lm-evaluation-harness: requests in, log-likelihoods and texts out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import transformers
from lm_eval.api.model import LM
from torch import Tensor, nn

from dllm.core.eval.config import EvalSettings, read_settings
from dllm.core.eval.fingerprint import fingerprint
from dllm.core.eval.framing import Framing
from dllm.core.eval.gen_kwargs import generation_settings
from dllm.core.eval.generation import GenerationRequest, generate_requests
from dllm.core.eval.jobs import GENERATION, LIKELIHOOD, ROLLING, Job, Work, jobs_of
from dllm.core.eval.journal import Entry, Journal, key_of
from dllm.core.eval.models import MODELS, EvalModel
from dllm.core.eval.progress import Progress
from dllm.core.eval.ranks import Ranks, device_named
from dllm.core.eval.record import model_record
from dllm.core.eval.usage import Usage, added
from dllm.core.likelihood import Target, count_rows, log_likelihoods, rolling_log_likelihoods, windows_of
from dllm.core.samplers.canvas import mask_token
from dllm.fast.model import MARKER, block_size_of, position_limit, right_shift_of
from dllm.models import get_model, get_tokenizer

# settings on which no answer depends, so that a run may be resumed with others
_INDIFFERENT = {
    ("eval", "device"),
    ("eval", "batch_size"),  # that of a published likelihood is among its own settings
    ("eval", "journal"),
    ("eval", "seed"),  # each request's own is in its key
    ("likelihood", "tokens_per_forward"),
    ("sampler", "cuda_graph"),
}
_REQUEST_KINDS = {LIKELIHOOD: "log-likelihoods", ROLLING: "perplexities"}


class DiffusionLM(LM):
    """A masked diffusion model for lm-evaluation-harness. Its subclasses are the models that can be named there.

    Args:
        model, tokenizer: loaded ones, in place of `pretrained`.
        max_batch_size: not used; lm-evaluation-harness passes it.
        model_args: settings, as :func:`dllm.core.eval.config.read_settings` takes them: `pretrained`, and any field of
            the configs of evaluation, model, sampler and likelihood.

    Raises:
        OSError: the model does not exist.
        TypeError, ValueError: an unknown setting (the message has the nearest), or one that breaks a rule.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> from lm_eval.api.instance import Instance
        >>> lm = BertLM(pretrained=str(SHIPPED), max_new_tokens=16, device="cpu")
        >>> prompt = lm.apply_chat_template([{"role": "user", "content": "What is 12 * 4?"}])
        >>> request = Instance("generate_until", {}, (prompt, {"until": ["."]}), 0, ("sums", 0, 1))
        >>> lm.generate_until([request], disable_tqdm=True)
        ['12 * 4 = 48']
    """

    table: ClassVar[EvalModel]

    def __init__(
        self, model: nn.Module | None = None, tokenizer: Any = None, max_batch_size: object = None, **model_args: Any
    ):
        super().__init__()
        if (model is None) != (tokenizer is None):
            raise ValueError("model and tokenizer must be given together, got one of them")
        if model is not None:
            model_args.setdefault("pretrained", getattr(model, "name_or_path", "") or type(model).__name__)
        self.settings = read_settings(self.table, model_args)
        self.ranks = Ranks()
        self._rank, self._world_size = self.ranks.rank, self.ranks.world_size
        self._device = device_named(self.settings.eval.device)
        self.model, self.tokenizer = self._loaded() if model is None else (model, tokenizer)
        self.settings = self._with_shift(self.settings)
        self.sampler = self.table.sampler(self.model, self.tokenizer)
        positions, is_hard = position_limit(self.model)
        longest = self.settings.eval.max_length
        self.max_length = min(longest, positions) if is_hard else longest
        self.framing = self._framing()
        self.fingerprint = fingerprint(self.model, self.tokenizer)
        self.journal = Journal(self.settings.eval.journal, self.rank)
        self.usage: dict[str, Usage] = {}
        self.totals: dict[str, Usage] = self.usage  # over all processes, on rank 0
        self.progress: Progress | None = None  # of a run of several tasks

    # what lm-evaluation-harness asks for

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each target, and whether greedy decoding gives it; False where that is not checked."""
        answers = self.answers(LIKELIHOOD, self.jobs(LIKELIHOOD, requests), shown=not disable_tqdm)
        return [(value, greedy) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, window by window."""
        answers = self.answers(ROLLING, self.jobs(ROLLING, requests), shown=not disable_tqdm)
        return [value for value, _ in answers]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that is generated after each prompt, up to a stop string or the end of the answer."""
        return self.answers(GENERATION, self.jobs(GENERATION, requests), shown=not disable_tqdm)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation. Without a generation prompt an answer at its end is left open.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        self.chat_template(True)
        opened = not add_generation_prompt and bool(chat_history) and chat_history[-1]["role"] == "assistant"
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=opened,
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The text of the chat template; "" if none is asked for.

        Raises:
            ValueError: the tokenizer has none, or another one is asked for by name.
        """
        if str(chat_template).lower() in ("false", ""):
            return ""
        template = getattr(self.tokenizer, "chat_template", None)
        if not isinstance(template, str) or not template:
            raise ValueError(
                f"apply_chat_template needs a tokenizer with a chat template; that of {self.name} has none"
            )
        if chat_template is not True and str(chat_template).lower() != "true":
            raise ValueError(f"apply_chat_template must be True or False, got {chat_template!r}")
        return template

    def all_gather(self, tensor: Tensor) -> Tensor:
        """See :meth:`dllm.core.eval.ranks.Ranks.all_gather`."""
        return self.ranks.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See :meth:`dllm.core.eval.ranks.Ranks.gather_object`."""
        return self.ranks.gather_object(obj, dst)

    def barrier(self) -> None:
        """Wait for all ranks, and add up what requests have cost there. lm-evaluation-harness calls it on all of them
        whenever requests of one type are answered."""
        parts = self.ranks.gather_object(self.usage)
        if parts is not None:
            self.totals = added(parts)
        self.ranks.barrier()

    @property
    def name(self) -> str:
        """The name or folder of the model."""
        return self.settings.model.model_name_or_path

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, for lm-evaluation-harness's cache of prompts."""
        return self.name.replace("/", "__")

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def batch_size(self) -> int:
        """Rows that are generated together."""
        return self.settings.eval.batch_size

    def get_model_info(self) -> dict[str, Any]:
        """What lm-evaluation-harness writes of the model into its results."""
        return model_record(self)

    # the work

    def jobs(self, kind: str, requests: Sequence[Any]) -> list[Job]:
        """A checked job for each request; see :func:`dllm.core.eval.jobs.jobs_of`.

        Raises:
            TypeError, ValueError: a request breaks a rule, or the model's blocks are not known.
        """
        encode = {LIKELIHOOD: self._target, ROLLING: self._document, GENERATION: self._prompt}[kind]
        if kind != GENERATION and self.table.by_blocks and block_size_of(self.model) is None:
            raise ValueError(
                f"{self.table.name} needs the size of the model's blocks for {_REQUEST_KINDS[kind]}: block_size in "
                f"{MARKER!r} of its configuration, got none; tasks that generate texts run without"
            )
        return jobs_of(requests, self.run_seed, encode)

    def answers(self, kind: str, jobs: Sequence[Job], *, shown: bool = True) -> list[Any]:
        """The answer of each job, from the journal or from the model. Each is in the journal as soon as it is there."""
        keys = self._keys(kind, jobs)
        for key, job in dict(zip(keys, jobs, strict=True)).items():
            if (entry := self.journal.read(key)) is not None:
                self._done(kind, job, entry, resumed=True)
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if self.journal.read(key) is None}
        if todo:
            work = sum(job.work.positions for job in todo.values())
            progress = self.progress or Progress(work, shown=shown and self.rank == 0)
            self._run(kind, list(todo), list(todo.values()), progress)
            if progress is not self.progress:
                progress.close()
        return [self.journal.read(key).result for key in keys]

    def is_answered(self, kind: str, jobs: Sequence[Job]) -> list[bool]:
        """Whether the journal has the answer of each job."""
        return [self.journal.read(key) is not None for key in self._keys(kind, jobs)]

    @property
    def run_seed(self) -> int:
        """The seed of the run: the setting, else torch's, which lm-evaluation-harness sets."""
        seed = self.settings.eval.seed
        return torch.initial_seed() if seed is None else seed

    def _keys(self, kind: str, jobs: Sequence[Job]) -> list[str]:
        parts = self.settings.as_dict()
        del parts["model"], parts["likelihood" if kind == GENERATION else "sampler"]
        settings = {
            part: {name: value for name, value in values.items() if (part, name) not in _INDIFFERENT}
            for part, values in parts.items()
        }
        checked = {True: settings | {"greedy": True}, False: settings}
        return [
            key_of(kind, job.arguments, job.seed, checked[self._checks_greedy(kind, job.alone)], self.fingerprint)
            for job in jobs
        ]

    def _checks_greedy(self, kind: str, alone: bool) -> bool:
        chosen = self.settings.eval.check_greedy
        return kind == LIKELIHOOD and (alone if chosen is None else chosen)

    def _run(self, kind: str, keys: Sequence[str], jobs: Sequence[Job], progress: Progress) -> None:
        """Answer jobs, and write each answer down."""
        last = time.perf_counter()

        def done(number: int, entry: Entry) -> None:
            self.journal.write(keys[number], entry)
            self._done(kind, jobs[number], entry, resumed=False)
            progress.add(jobs[number].work.positions, task=jobs[number].task)

        def estimated(number: int, estimate: Any) -> None:
            nonlocal last
            now = time.perf_counter()
            result = [estimate.log_likelihood, bool(estimate.greedy)]
            tokens = jobs[number].work.tokens
            done(number, Entry(result, estimate.rows, tokens, now - last, estimate.stderr))
            last = now

        def generated(number: int, text: Any) -> None:
            done(number, Entry(text.text, text.forwards, text.tokens, text.seconds))

        contents = [job.work.content for job in jobs]
        if kind == GENERATION:
            generate_requests(
                self.sampler,
                contents,
                self.settings.sampler,
                batch_size=self.batch_size,
                keep_special_tokens=self.settings.eval.escape_until,
                max_length=self.max_length,
                on_generated=generated,
            )
            return
        grouped = [self._checks_greedy(kind, job.alone) if kind == LIKELIHOOD else job.work.content[0] for job in jobs]
        for common, numbers in _by_value(grouped).items():

            def of_group(number: int, estimate: Any, numbers: list[int] = numbers) -> None:
                estimated(numbers[number], estimate)

            of = dict(tokenizer=self.tokenizer, mask_id=self.framing.mask_id, on_estimate=of_group)
            chosen = [contents[number] for number in numbers]
            if kind == LIKELIHOOD:
                config = dataclasses.replace(self.settings.likelihood, check_greedy=common)
                log_likelihoods(self.model, chosen, config, **of)
            else:
                _, texts, seeds = zip(*chosen, strict=True)
                of |= dict(window=self.max_length, prefix=common, seeds=seeds)
                rolling_log_likelihoods(self.model, texts, self.settings.likelihood, **of)

    def _done(self, kind: str, job: Job, entry: Entry, *, resumed: bool) -> None:
        self.usage.setdefault(job.task, Usage()).count(entry, resumed=resumed)
        result = tuple(entry.result) if kind == LIKELIHOOD else entry.result
        self.cache_hook.add_partial(kind, job.arguments, result[0] if kind == ROLLING else result)

    # encoding

    def _target(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        context, target, after = self.framing.pair(*arguments)
        rows = count_rows(len(target), self.settings.likelihood)
        rows += len(target) if self._checks_greedy(LIKELIHOOD, alone) else 0
        columns = len(context) + len(target) + len(after)
        return Work(Target(context, target, seed, after), rows, columns, len(target))

    def _document(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        prefix, tokens = self.framing.document(arguments[0])
        windows = list(windows_of(tokens, self.max_length, prefix))
        rows = sum(count_rows(len(target), self.settings.likelihood) for _, target in windows)
        columns = max(len(context) + len(target) for context, target in windows)
        return Work((tuple(prefix), tokens, seed), rows, columns, len(tokens))

    def _prompt(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        text, kwargs = arguments
        until, overrides = generation_settings(kwargs, self.settings)
        overrides |= {"stop_at_eos": self.settings.sampler.stop_at_eos}
        config = self.settings.sampler.with_length(
            overrides.get("max_new_tokens", self.settings.sampler.max_new_tokens)
        )
        config = dataclasses.replace(config, **overrides)
        config.check()
        prompt = self.framing.prompt(text, config.max_new_tokens)
        until = () if self.settings.eval.escape_until else until
        blocks = -(-config.max_new_tokens // (config.block_size or config.max_new_tokens))
        steps = config.steps * (blocks if self.table.name == "llada2" else 1)
        steps = min(steps, config.max_new_tokens)
        request = GenerationRequest(prompt, until, seed, overrides)
        return Work(request, steps, len(prompt) + config.max_new_tokens, config.max_new_tokens)

    # set-up

    def _loaded(self) -> tuple[nn.Module, Any]:
        arguments = self.settings.model
        tokenizer = get_tokenizer(arguments)
        with _quiet_loading():
            model = get_model(arguments).eval().requires_grad_(False)
        placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
        return (model if placed else model.to(self._device)), tokenizer

    def _with_shift(self, settings: EvalSettings) -> EvalSettings:
        """The settings, with the sampler's own right shift for the likelihood where nothing else says."""
        likelihood = settings.likelihood
        if likelihood.right_shift_logits is not None or right_shift_of(self.model) is not None:
            return settings
        shifts = self.table.sampler.shifts_right
        return settings._replace(likelihood=dataclasses.replace(likelihood, right_shift_logits=shifts))

    def _framing(self) -> Framing:
        chosen, shift = self.settings.eval, self.settings.likelihood.right_shift_logits
        shift = right_shift_of(self.model) if shift is None else shift
        return Framing(
            self.tokenizer,
            mask_token(self.model, self.tokenizer),
            self.max_length,
            ends_with_eos=self.table.form == "dream",
            add_bos_token=chosen.add_bos_token,
            add_special_tokens=chosen.add_special_tokens,
            too_long=chosen.too_long,
            needs_first=bool(shift),
        )


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Context manager: transformers shows no progress bar of its own."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _by_value(values: Sequence[Any]) -> dict[Any, list[int]]:
    """The numbers of equal values."""
    groups: dict[Any, list[int]] = {}
    for number, value in enumerate(values):
        groups.setdefault(value, []).append(number)
    return groups


class LLaDALM(DiffusionLM):
    """LLaDA and LLaDA-MoE."""

    table = MODELS["llada"]


class BertLM(DiffusionLM):
    """BERT, RoBERTa and ModernBERT."""

    table = MODELS["bert"]


class DreamLM(DiffusionLM):
    """Dream."""

    table = MODELS["dream"]


class A2DMDLMLM(DiffusionLM):
    """Autoregressive models that were made bidirectional."""

    table = MODELS["a2d_mdlm"]


class A2DBD3LMLM(DiffusionLM):
    """Autoregressive models that were made to attend by blocks."""

    table = MODELS["a2d_bd3lm"]


class FastDLLMLLaDALM(DiffusionLM):
    """LLaDA with the cache and the threshold of Fast-dLLM."""

    table = MODELS["fastdllm_llada"]


class FastDLLMDreamLM(DiffusionLM):
    """Dream with the cache and the threshold of Fast-dLLM."""

    table = MODELS["fastdllm_dream"]


class LLaDA2LM(DiffusionLM):
    """LLaDA 2.0."""

    table = MODELS["llada2"]


class RND1LM(DiffusionLM):
    """RND1."""

    table = MODELS["rnd1"]
