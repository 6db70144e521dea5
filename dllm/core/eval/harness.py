"""What every model of lm-evaluation-harness does: requests in, log-likelihoods and texts out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jinja2
import torch
import transformers
from lm_eval.api.model import LM
from torch import Tensor, nn

from dllm.core.eval.answering import Answering
from dllm.core.eval.config import EvalSettings, read_settings
from dllm.core.eval.encoding import Encoder
from dllm.core.eval.fingerprint import fingerprint
from dllm.core.eval.framing import Framing
from dllm.core.eval.jobs import GENERATION, LIKELIHOOD, NAMES, ROLLING, Job, jobs_of
from dllm.core.eval.journal import Entry, Journal
from dllm.core.eval.models import EvalModel
from dllm.core.eval.progress import Progress
from dllm.core.eval.ranks import Ranks, device_named
from dllm.core.eval.record import model_record
from dllm.core.eval.usage import Usage, added
from dllm.core.samplers import DiffusionGemmaSampler, DiffusionGemmaSamplerConfig
from dllm.core.samplers.canvas import mask_token
from dllm.exits import explanation
from dllm.fast.model import MARKER, block_size_of, position_limit, right_shift_of
from dllm.models import get_model, get_tokenizer, with_packed_attention


class DiffusionLM(LM):
    """A masked diffusion model for lm-evaluation-harness. Its subclasses
    (:mod:`dllm.core.eval.model_classes`) are the models that can be named there.

    Args:
        model, tokenizer: loaded ones, in place of `pretrained`.
        max_batch_size: not used; lm-evaluation-harness passes it.
        model_args: settings, as :func:`dllm.core.eval.config.read_settings` takes them: `pretrained`, and any field of
            the configs of evaluation, model, sampler and likelihood.

    Raises:
        OSError: the model does not exist.
        TypeError, ValueError: an unknown setting (the message has the nearest), or one that breaks a rule.

    Example:
        >>> from dllm.core.eval.model_classes import BertLM
        >>> from dllm.demo.shipped import SHIPPED
        >>> from lm_eval.api.instance import Instance
        >>> lm = BertLM(pretrained=str(SHIPPED), max_new_tokens=16, device="cpu")
        >>> prompt = lm.apply_chat_template([{"role": "user", "content": "What is 12 * 4?"}])
        >>> request = Instance("generate_until", {}, (prompt, {"until": ["."]}), 0, ("sums", 0, 1))
        >>> lm.generate_until([request], disable_tqdm=True)
        [' 12 * 4 = 48']
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
        self.settings = self._with_shift(self._with_models_own(self.settings))
        self.sampler = self.table.sampler(self.model, self.tokenizer)
        positions, is_hard = position_limit(self.model)
        longest = self.settings.eval.max_length
        self.max_length = min(longest, positions) if is_hard else longest
        self.framing = self._framing()
        self.encoder = Encoder(self.settings, self.framing, self.max_length)
        self.fingerprint = fingerprint(self.model, self.tokenizer)
        self.journal = Journal(self.settings.eval.journal, self.rank)
        self.answering = Answering(
            self.sampler,
            self.framing.mask_id,
            self.settings,
            max_length=self.max_length,
            fingerprint=self.fingerprint,
            journal=self.journal,
            on_answer=self._count,
        )
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
            ValueError: the tokenizer has no chat template, or the template fails on this conversation.
        """
        self.chat_template(True)
        opened = not add_generation_prompt and bool(chat_history) and chat_history[-1]["role"] == "assistant"
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=opened,
            )
        except jinja2.TemplateError as error:  # the templates of tasks raise the same
            raise ValueError(explanation(error)) from error

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

    # requests and their answers

    def jobs(self, kind: str, requests: Sequence[Any]) -> list[Job]:
        """A checked job for each request; see :func:`dllm.core.eval.jobs.jobs_of`.

        Raises:
            TypeError, ValueError: a request breaks a rule, the model's blocks are not known, or texts have no
                likelihood under the model.
        """
        if kind != GENERATION and self.table.no_likelihood:
            raise ValueError(
                f"{self.table.name} has no {NAMES[kind]}: {self.table.no_likelihood}; tasks that generate texts run"
            )
        encode = {LIKELIHOOD: self.encoder.target, ROLLING: self.encoder.document, GENERATION: self.encoder.prompt}[
            kind
        ]
        if kind != GENERATION and self.table.by_blocks and block_size_of(self.model) is None:
            raise ValueError(
                f"{self.table.name} needs the size of the model's blocks for {NAMES[kind]}: block_size in "
                f"{MARKER!r} of its configuration, got none; tasks that generate texts run without"
            )
        return jobs_of(requests, self.run_seed, encode)

    def answers(self, kind: str, jobs: Sequence[Job], *, shown: bool = True) -> list[Any]:
        """The answer of each job, from the journal or from the model. Each is in the journal as soon as it is there."""
        return self.answering.answers(kind, jobs, self.progress, shown=shown and self.rank == 0)

    def is_answered(self, kind: str, jobs: Sequence[Job]) -> list[bool]:
        """Whether the journal has the answer of each job."""
        return self.answering.is_answered(kind, jobs)

    @property
    def run_seed(self) -> int:
        """The seed of the run: the setting, else torch's, which lm-evaluation-harness sets."""
        seed = self.settings.eval.seed
        return torch.initial_seed() if seed is None else seed

    def _count(self, kind: str, job: Job, entry: Entry, resumed: bool) -> None:
        """Count what an answer has cost, and tell lm-evaluation-harness's cache of it."""
        self.usage.setdefault(job.task, Usage()).count(entry, resumed=resumed)
        result = tuple(entry.result) if kind == LIKELIHOOD else entry.result
        self.cache_hook.add_partial(kind, job.arguments, result[0] if kind == ROLLING else result)

    # set-up

    def _loaded(self) -> tuple[nn.Module, Any]:
        arguments = self.settings.model
        tokenizer = get_tokenizer(arguments)
        with _quiet_loading():
            model = get_model(arguments).eval().requires_grad_(False)
        placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
        model = model if placed else model.to(self._device)
        return (with_packed_attention(model) if arguments.attn_implementation is None else model), tokenizer

    def _with_models_own(self, settings: EvalSettings) -> EvalSettings:
        """The settings, with the sampler's own of the model's generation_config where nobody has given others."""
        if self.table.sampler is not DiffusionGemmaSampler:
            return settings
        given = {name: getattr(settings.sampler, name) for name in settings.given if hasattr(settings.sampler, name)}
        sampler = dataclasses.replace(DiffusionGemmaSamplerConfig.of(self.model), **given)
        sampler.check()
        return settings._replace(sampler=sampler)

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
            mask_token(self.model, self.tokenizer) if self.table.sampler.masks else None,
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
