"""The sampler of Nemotron-Labs-Diffusion: blocks that are denoised over a causal cache, each after a first token that
is chosen autoregressively."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dllm.core.samplers import canvas
from dllm.core.samplers.base import BaseSampler
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_threshold_and_factor
from dllm.core.samplers.layout import Seed, Span
from dllm.core.samplers.nemotron_model import follow_masks
from dllm.core.samplers.run import Plan
from dllm.core.samplers.schedules import even_counts
from dllm.fast.sampling.inputs import check_eos

THINK_END = "</think>"


@dataclass
class NemotronDiffusionSamplerConfig(BaseSamplerConfig):
    """Settings of :class:`NemotronDiffusionSampler` besides those of :class:`BaseSamplerConfig`.

    block_size: tokens of a block, the first one included. The last block ends with the row, so `max_new_tokens` may be
        any number.
    threshold: commit every proposal of at least this probability, and at least the schedule's number; None: this
        number.
    steps: of a block, at most. A step's number is that of an even schedule of the block's `block_size` - 1 masks. None:
        as many steps as the block has tokens, so that the number is 1.
    eos_token_id: ends a row; None: the tokenizer's EOS, else that of the model's configuration. Besides, a row ends at
        the tokenizer's end of turn; if it has none, at the EOS of the model's configuration.
    max_thinking_tokens: a row that has generated so many tokens and no `</think>` gets one; None: it thinks as long as
        it likes.
    """

    block_size: int | None = 8
    stop_at_eos: bool = True
    threshold: float | None = 0.9
    steps: int | None = None
    eos_token_id: int | None = None
    max_thinking_tokens: int | None = None

    steps_of: ClassVar[str] = "block"

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        if self.block_size is None or self.block_size < 2:
            raise ValueError(
                "block_size must be at least 2, since a block's first token is chosen autoregressively; "
                f"got {self.block_size}"
            )
        check_threshold_and_factor(self.threshold, None)
        for name, least in (("steps", 1), ("eos_token_id", 0), ("max_thinking_tokens", 0)):
            if getattr(self, name) is not None:
                at_least(least, name, getattr(self, name))
        if self.right_shift_logits:
            raise ValueError("right_shift_logits must not be True: these models read masks at their own positions")


class NemotronDiffusionSampler(BaseSampler):
    """Block by block, with a model that was trained for both: to read a text causally, and to fill the masks of a block
    whose positions see each other.

    A block begins with a causal pass over what is final and was not read yet, the prompt or the block before. Its keys
    and values are kept. Its last logits give the block's first token: the likeliest, or at a temperature T a draw from
    softmax(l / T). The other positions are masks. A step runs the block alone over the kept keys and values, and
    commits the proposals of high probability. Nothing is run after the last block.

    An EOS ends its own row, with no mask before it. (The published loop ends a block where any row has one, and leaves
    masks in the others.) Rows of any lengths run together, each in blocks and at steps of its own. `forwards` and
    `row_forwards` of the stats count steps and causal passes, which is what others call nfe.

    Args:
        model: takes a 4-D attention mask and `past_key_values`: a Llama of transformers and the like, causal or made
            bidirectional, or a module with the interface of the published code
            (:func:`dllm.core.samplers.nemotron_model.follow_masks`).
        tokenizer: has `</think>`, if `max_thinking_tokens` is used; its mask token may be that of the model's
            configuration.

    Raises:
        ValueError: from `sample`, besides what :class:`BaseSampler` raises: a prompt is empty; from `infill`: always.

    Source: `generate` of Nemotron-Labs-Diffusion (arXiv:2607.05722) with causal context.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(**size)).eval()
        >>> sampler = NemotronDiffusionSampler(model, SimpleNamespace(mask_token_id=3, eos_token_id=2))
        >>> sampler.sample([[5, 6], [7]], max_new_tokens=6, block_size=4).shape
        torch.Size([2, 8])
    """

    config_class = NemotronDiffusionSamplerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        follow_masks(self.model)

    def plan(
        self,
        inputs: canvas.Rows,
        config: BaseSamplerConfig | None = None,
        *,
        seed: Seed = None,
        **overrides: Any,
    ) -> Plan:
        """As :meth:`BaseSampler.plan`."""
        rows = canvas.token_rows(inputs)
        for number, row in enumerate(rows):
            if not len(row):
                raise ValueError(
                    f"a prompt must have at least one token, whose logits give the next one; got none in row {number}"
                )
        return super().plan(rows, config, seed=seed, **overrides)

    def check(self, inputs: canvas.Rows, config: BaseSamplerConfig | None = None, **overrides: Any) -> None:
        """As :meth:`BaseSampler.check`. An empty row stands for a prompt that is not known yet."""
        super().plan(inputs, config, seed=0, **overrides)

    def infill(self, inputs: canvas.Rows, config: BaseSamplerConfig | None = None, **overrides: Any) -> Any:
        """Not supported: a block begins with a token that is chosen from the tokens before it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "NemotronDiffusionSampler continues prompts, and cannot infill: it reads what is final causally, so what "
            "stands behind a mask is not seen; MDLMSampler.infill fills texts"
        )

    def amounts(self, config: NemotronDiffusionSamplerConfig, span: Span) -> Sequence[int]:
        """The least number of tokens to commit at each step; one more step for a first token that is a mask."""
        masks = span.stop - span.start - 1
        return [*even_counts(masks, config.steps or masks + 1), 1]

    def policy(self, config: NemotronDiffusionSamplerConfig) -> dict[str, Any]:
        """Commit all that reaches the threshold, over a causal cache. A block ends with its last mask."""
        rule = {"confidence": "probability", "threshold": math.inf if config.threshold is None else config.threshold}
        rule |= {"block_causal": config.block_size, "cache": "causal"}
        if config.max_thinking_tokens is not None:
            rule |= {"max_thinking_tokens": config.max_thinking_tokens, "think_end_id": self._think_end()}
        return rule

    def _think_end(self) -> int:
        """The token that ends the reasoning."""
        convert = getattr(self.tokenizer, "convert_tokens_to_ids", None)
        found = convert(THINK_END) if callable(convert) else None
        if found is None or found == getattr(self.tokenizer, "unk_token_id", None):
            raise ValueError(f"max_thinking_tokens needs a tokenizer with a token {THINK_END}")
        return canvas.check_tokens(THINK_END, [found], self.model)[0]

    def _mask_id(self) -> int:
        """The tokenizer's mask token, else that of the model's configuration."""
        if getattr(self.tokenizer, "mask_token_id", None) is None:
            return canvas.mask_token(self.model, None)
        return super()._mask_id()

    def _end_of_text(self, config: NemotronDiffusionSamplerConfig) -> object:
        """The setting, else the tokenizer's EOS, else that of the model's configuration."""
        named = (config.eos_token_id, super()._end_of_text(config), self._own_end())
        return next((token for token in named if token is not None), None)

    def _end_of_turn(self, mask_id: int) -> int | None:
        """The tokenizer's end of turn, else the EOS of the model's configuration, which ends answers there."""
        found = super()._end_of_turn(mask_id)
        return check_eos(self.model, self._own_end(), mask_id) if found is None else found

    def _own_end(self) -> int | None:
        """The EOS of the model's configuration, if it names one."""
        found = getattr(getattr(self.model, "config", None), "eos_token_id", None)
        return found if isinstance(found, int) else None

    def _right_shift(self, config: NemotronDiffusionSamplerConfig) -> bool:
        return False
