"""What a server serves: a model with its sampler, and how a request becomes rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.core.samplers.run import Plan
from dllm.fast.head.split import SplitModel
from dllm.fast.int8 import is_int8
from dllm.fast.model import input_embedding, position_limit
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.unpadded import has_own_bits
from dllm.serve.errors import ApiError

GRID = 8  # columns; rows that do not run packed are as wide as their length needs, rounded up to a multiple of this
MOST_NEW = 128  # tokens of an answer where a request does not say


@dataclass(frozen=True, eq=False)
class Engine:
    """A model to serve.

    sampler: of :mod:`dllm.core.samplers`; its model is in evaluation mode.
    config: its settings, where a request does not say.
    name: under which the model is served.
    width_multiple: :data:`GRID`, or None: rows run as wide as the widest, which is faster, and tokens then depend on
        other requests where two are as good as equal. Under "packed_sdpa" (:func:`dllm.models.with_packed_attention`)
        it changes nothing: rows run packed, each as wide as it is.
    max_length: columns of a prompt and its answer, at most; None: as many as the model has positions.

    Raises:
        TypeError, ValueError: a setting breaks a rule, or the sampler cannot be served.

    Example:
        >>> from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
        >>> from dllm.demo.shipped import load_shipped
        >>> engine = Engine(MDLMSampler(*load_shipped()), MDLMSamplerConfig(), name="shipped")
        >>> engine.positions, engine.invariant
        (192, 'exact')
        >>> len(engine.plan([5, 6, 7], [0], new=4, temperature=None, steps=2, block_length=None).batch.tokens[0])
        7
    """

    sampler: BaseSampler
    config: BaseSamplerConfig
    name: str
    width_multiple: int | None = GRID
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"the served name must be a printable text, got {self.name!r}")
        if self.config.max_new_tokens is None:
            raise ValueError("max_new_tokens must be a number for a server, got None")
        self.config.check()
        if self.positions is not None and self.positions < 2:
            raise ValueError(f"there must be room for a prompt and an answer, got {self.positions} positions")
        self._planned(self.new_tokens(1, None))  # raises what is wrong with the settings, at the length that has them

    @property
    def tokenizer(self) -> Any:
        """The sampler's tokenizer."""
        return self.sampler.tokenizer

    @property
    def mask_id(self) -> int:
        """The mask token."""
        return self.sampler.tokenizer.mask_token_id

    @cached_property
    def positions(self) -> int | None:
        """Columns of a prompt and its answer, at most; None: no limit is known."""
        limits = [limit for limit in (position_limit(self.sampler.model)[0], self.max_length) if limit is not None]
        return min(limits, default=None)

    @cached_property
    def invariant(self) -> str:
        """ "exact": a request's tokens depend on its body alone; "rounding": up to the last bits of hidden states.

        A compiled body takes other products for other numbers of rows, so its bits depend on the company. A row's bits
        depend on its width, too, which is that of the widest row unless rows run packed, by widths, or one at a time.

        It is found by running the model on a few tokens, in :meth:`warm_up` at the latest.
        """
        weight = input_embedding(self.sampler.model)
        plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not is_int8(self.sampler.model)
        if not plain or self.config.compile_body:
            return "rounding"
        if self.one_at_a_time:
            return "exact"
        own_width = not self._policy.keeps_to_blocks and (self.width_multiple or self._runs_packed())
        return "exact" if own_width else "rounding"

    def _runs_packed(self) -> bool:
        model = self.sampler.model
        example = torch.full((1, 2), int(self.mask_id == 0), device=input_embedding(model).device)
        return has_own_bits(SplitModel(model, example))

    def warm_up(self, rows: int = 1) -> None:
        """Generate a token, so that what cannot be served is said before anybody asks, and kernels are there.

        On a GPU `rows` rows of the greatest length do, so that the memory which they take is known to be there.

        Raises:
            ValueError, RuntimeError: see :meth:`dllm.core.samplers.base.BaseSampler.sample`.
            torch.OutOfMemoryError: the rows are too many, or too long.
        """
        on_gpu = input_embedding(self.sampler.model).device.type != "cpu"
        prompt = [int(self.mask_id == 0)] * ((self.positions or GRID) - 1 if on_gpu else 1)
        prompts = [prompt] * (rows if on_gpu and not self._policy.keeps_to_blocks else 1)
        self.sampler.sample(prompts, self.config.with_length(1), seed=0, return_dict=False)
        _ = self.invariant

    def new_tokens(self, given: int, asked: int | None) -> int:
        """How many tokens to generate beside `given` ones.

        Raises:
            ApiError: there is no room for them.
        """
        room = None if self.positions is None else self.positions - given
        if asked is None:
            asked = min(self.config.max_new_tokens, max(room, 1) if room is not None else MOST_NEW)
        if room is not None and asked > room:
            raise ApiError(
                400,
                f"this model has room for {self.positions} tokens, got {given + asked}: {given} of the prompt and "
                f"{asked} of the answer",
                param="max_tokens" if room >= 1 else None,
                code="context_length_exceeded",
            )
        return asked

    def plan(
        self,
        prompt: Sequence[int],
        seeds: Sequence[int],
        *,
        new: int | None,
        temperature: float | None,
        steps: int | None,
        block_length: int | None,
    ) -> Plan:
        """Rows for one prompt, one for each seed. Any thread may do this.

        Args:
            prompt: token ids; to be continued, or with masks to be filled.
            seeds: of the rows.
            new: tokens to generate; None: masks are filled.
            temperature, steps, block_length: None: the server's.

        Raises:
            ApiError: a value breaks a rule.
        """
        count = list(prompt).count(self.mask_id) if new is None else new
        config = self._config(count, temperature, steps, block_length)
        rows = [list(prompt)] * len(seeds)
        try:
            if new is None:
                return self.sampler.plan_infill(rows, config, seed=list(seeds), stop_at_eos=False)
            return self.sampler.plan(rows, config, seed=list(seeds))
        except (TypeError, ValueError) as error:
            raise ApiError(400, str(error), code="invalid_value") from None

    @property
    def one_at_a_time(self) -> bool:
        """Whether a row must end before another one begins: the KV cache is that of rows that began together."""
        return self._policy.cache is not None

    @cached_property
    def _policy(self) -> Policy:
        """The policy of rows that are continued."""
        return self._planned(1).policy

    def _planned(self, new: int) -> Plan:
        """A row of `new` tokens behind one of a prompt."""
        return self.sampler.plan([[int(self.mask_id == 0)]], self.config.with_length(new), seed=0)

    def _config(
        self, new: int, temperature: float | None, steps: int | None, block_length: int | None
    ) -> BaseSamplerConfig:
        config, changed = self.config, {}
        if block_length is not None:
            config = dataclasses.replace(config, block_size=block_length)
        config = config.with_length(new)
        if temperature is not None:
            changed["temperature"] = temperature
        if steps is not None:
            if not hasattr(config, "steps"):
                raise ApiError(400, "this server's sampler has no steps", param="steps", code="unsupported_parameter")
            changed["steps"] = steps
        return dataclasses.replace(config, return_dict=False, **changed)

    @cached_property
    def why_no_logprobs(self) -> str | None:
        """Why log-probabilities cannot be told; None: they can."""
        if self._policy.tempered:
            return "this server's sampler knows them after temperature and filters only"
        return None

    def described(self) -> dict[str, Any]:
        """What /v1/models tells besides the name."""
        config = self.config
        return {
            "positions": self.positions,
            "sampler": type(self.sampler).__name__,
            "invariant": self.invariant,
            "defaults": {
                "max_tokens": config.max_new_tokens,
                "steps": getattr(config, "steps", None),
                "block_length": config.block_size,
                "temperature": config.temperature,
            },
            "denoise": True,
        }
