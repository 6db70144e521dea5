"""RND1's sampler: the positions of lowest entropy first, an even number in each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.core.samplers import canvas
from dllm.core.samplers.base import BaseSampler, Plan
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_filters, true_or_false
from dllm.core.samplers.layout import RowLayout, Span
from dllm.core.samplers.schedules import falling_counts


@dataclass
class RND1SamplerConfig(BaseSamplerConfig):
    """Settings of :class:`RND1Sampler` besides those of :class:`BaseSamplerConfig`; all tokens are one block.

    max_new_tokens: columns after the prompt, the reserved last one among them; None: up to `max_length`.
    steps: denoising steps.
    temperature: of the distribution whose entropy is measured, and of the proposals; 0 is greedy, with the entropy at
        temperature 1.
    greedy: propose the most probable token.
    top_k, top_p: tokens that may be proposed: the top_k most probable ones, and of these those with at most a share
        top_p of their mass before them; None is off, and so is a top_p of 1.
    add_eos_at_end: the reserved last column of a row holds the tokenizer's EOS; else its padding token.
    """

    max_new_tokens: int | None = None
    max_length: int | None = 256
    block_size: int | None = None
    temperature: float = 0.1
    steps: int = 256
    greedy: bool = False
    top_k: int | None = None
    top_p: float | None = None
    add_eos_at_end: bool = False

    def check(self) -> None:
        """See :meth:`BaseSamplerConfig.check`."""
        super().check()
        at_least(1, "steps", self.steps)
        for name in ("greedy", "add_eos_at_end"):
            true_or_false(name, getattr(self, name))
        check_filters(self.top_k, self.top_p)


class RND1Sampler(BaseSampler):
    """The sampler of RND1: one block, shifted logits; a step commits the positions of lowest entropy.

    Of m masked tokens, int(m s / S) stay masked after the step with s of S steps to go. The entropy is that of the
    distribution after temperature and filters.

    `sample` reserves the last column of a row: it is not generated and holds the padding token, or EOS with
    `add_eos_at_end`. `infill` fills the masks of the texts as they are given.

    Two details differ from the published loop. There, a filtered token makes the entropy NaN and the order arbitrary;
    here 0 ln 0 is 0. There, the first column of a row without a prompt stays masked; here it reads its own logits.

    Source: `diffusion_sample` of RND1-Base-0910 (RadicalNumerics/RND1).

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from dllm.models import bidirectional
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = bidirectional(LlamaForCausalLM(LlamaConfig(**size)).eval())
        >>> sampler = RND1Sampler(model, SimpleNamespace(mask_token_id=3, eos_token_id=2, pad_token_id=1))
        >>> sampler.sample([[5, 6]], max_new_tokens=4, steps=3, seed=0)[0, -1]
        tensor(1)
    """

    config_class = RND1SamplerConfig
    shifts_right = True

    def amounts(self, config: RND1SamplerConfig, span: Span) -> Sequence[int]:
        """Tokens committed at each step of a block."""
        return falling_counts(span.masks, -(-config.steps // span.blocks))

    def policy(self, config: RND1SamplerConfig) -> dict[str, Any]:
        """Filters of the proposals, and the entropy that ranks them."""
        return {
            "tempered": True,
            "greedy": config.greedy,
            "top_k": config.top_k,
            "top_p": None if config.top_p == 1 else config.top_p,
            "top_k_first": True,
            "confidence": "neg_entropy",
        }

    def _plan(self, layout: RowLayout, config: RND1SamplerConfig, *, continues: bool) -> Plan:
        """As :meth:`BaseSampler._plan`, with the last column of each row reserved if prompts are continued."""
        if continues:
            layout = _with_last_column(layout, self._last_token(layout.mask_id, add_eos=config.add_eos_at_end))
        return super()._plan(layout, config, continues=continues)

    def _last_token(self, mask_id: int, *, add_eos: bool) -> int:
        name = "eos_token_id" if add_eos else "pad_token_id"
        token = getattr(self.tokenizer, name, None)
        if token is None or token == mask_id:
            raise ValueError(
                f"the last column of a row is reserved for {name}, which the tokenizer must have beside its "
                f"mask token; got {token}"
            )
        return canvas.check_tokens(name, [token], self.model)[0]


def _with_last_column(layout: RowLayout, token: int) -> RowLayout:
    """The layout with a token in place of the last mask of each row, which may be its only one."""
    rows, spans = [], []
    for row, blocks in zip(layout.rows, layout.spans, strict=True):
        rows.append(row.clone())
        rows[-1][-1] = token
        spans.append([*blocks[:-1], blocks[-1]._replace(masks=blocks[-1].masks - 1)])
    return dataclasses.replace(layout, rows=rows, spans=spans)
