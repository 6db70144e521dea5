"""Block diffusion (BD3-LM): the objective, blocks from left to right and masked diffusion inside each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from dllm.core.schedulers import BaseAlphaScheduler
from dllm.core.trainers.block_collator import AppendEOSBlockWrapper, BD3LMCollator
from dllm.core.trainers.block_mask import BlockInputs, check_sees_blocks
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import MDLMConfig
from dllm.core.trainers.mdlm import MDLMTrainer
from dllm.fast.model import input_embedding, unwrapped

__all__ = ["AppendEOSBlockWrapper", "BD3LMConfig", "BD3LMTrainer"]


@dataclass
class BD3LMConfig(MDLMConfig):
    """Arguments of :class:`BD3LMTrainer`: those of :class:`~dllm.core.trainers.mdlm.MDLMConfig`, and the fields below.

    The paper's clipped range of t is `time_epsilon` to `time_max`.

    Raises:
        TypeError, ValueError: as the parent class; or `block_size` is not an integer of at least 1.

    Example:
        >>> BD3LMConfig(output_dir="out", report_to="none").block_size
        32
    """

    block_size: int = field(default=32, metadata={"help": "Tokens of a block."})
    time_per_block: bool = field(
        default=False, metadata={"help": "A diffusion time for each block, as in the paper, not one for each sample."}
    )

    def __post_init__(self):
        if type(self.block_size) is not int:
            raise TypeError(f"block_size must be an integer, got {self.block_size!r}")
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        super().__post_init__()


class BD3LMTrainer(MDLMTrainer):
    r"""Trains a language model by block diffusion (BD3-LM): blocks from left to right, each by masked diffusion.

    A row holds a text twice, [x_t ; x_0], with the same position ids. A block of x_t attends to itself and to the
    earlier blocks of x_0 (:func:`~dllm.core.trainers.block_mask.block_mask`), so one forward trains all blocks, each in
    the context that it will have in sampling. The loss is that of :class:`~dllm.core.trainers.mdlm.MDLMTrainer`, over
    the masked tokens of x_t alone: with b the blocks of a sample,

    .. math::
        loss = \frac{1}{Z} \sum_{samples} c \sum_b w(t_b) \sum_{masked\ i \in b} -\log p(x_i \mid x_t^b, x_0^{<b})

    where t_b is the time of the sample, or with `time_per_block` a time of each block. A single block as long as the
    text gives the loss of MDLM. With `right_shift_logits` the first token of a block is predicted by the last position
    of the block before it in x_t. Everything else is as in :class:`~dllm.core.trainers.mdlm.MDLMTrainer`; logs count
    each token once.

    Before the first batch, two forwards on a few tokens check that the model attends to exactly what the mask says.
    Supported: BERT, RoBERTa; ModernBERT under transformers 5, without CUDA graphs; causal models of transformers
    without local layers (Llama, Qwen2, Qwen3), made bidirectional or not, whose own mask the block mask replaces.

    Args:
        args: :class:`BD3LMConfig`.
        others: as of :class:`~dllm.core.trainers.mdlm.MDLMTrainer`. For fine-tuning, :class:`AppendEOSBlockWrapper`
            around a `data_collator` extends answers to whole blocks.

    Raises:
        TypeError, ValueError: as the parent class; `args` is not a BD3LMConfig; the attention takes no such mask; in
            training, the model does not follow the mask.

    Source: BD3-LM (arXiv:2503.09573); the names are those of dLLM 0.1.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny, mask_token_id=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = BD3LMConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no", block_size=2,
        ...     )
        ...     trainer = BD3LMTrainer(config, model=model, train_dataset=[{"input_ids": [5, 6, 7]}] * 8)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        2
    """

    attends_by_blocks = True

    def __init__(
        self,
        args: BD3LMConfig,
        scheduler: BaseAlphaScheduler | None = None,
        model: nn.Module | None = None,
        **options: Any,
    ):
        if not isinstance(args, BD3LMConfig):
            raise TypeError(f"args must be a BD3LMConfig, got {type(args).__name__}")
        super().__init__(args, scheduler, model, **options)
        self._block_inputs = BlockInputs.of(self.model)

    block_size = property(attrgetter("args.block_size"), doc="Tokens of a block.")

    def _make_collator(self, kind: type[MDLMCollator] = BD3LMCollator, **options: Any) -> MDLMCollator:
        blocks = dict(block_size=self.args.block_size, time_per_block=self.args.time_per_block)
        return super()._make_collator(kind, **blocks, **options)

    def _probe_model(self, model: nn.Module, device: torch.device) -> None:
        check_sees_blocks(model, self._block_inputs)  # needs no check of padding, which the block mask covers

    def _text_columns(self, inputs: Mapping[str, Any]) -> int:
        return super()._text_columns(inputs) // 2

    def _model_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = super()._model_inputs(model, inputs)
        padding, dtype = given.pop("attention_mask", None), input_embedding(unwrapped(model)).dtype
        made = self._block_inputs(given["input_ids"], self.args.block_size, dtype=dtype, attention_mask=padding)
        return made | given  # position_ids and token_type_ids of the batch are kept

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        # A token passes the body twice. Attention is counted as L^2 pairs: L^2 / 2 in each half.
        self._flops.body *= 2
