"""Dream: masked diffusion with shifted logits and weights by context (CART)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from dllm.core.trainers.batches import IGNORE
from dllm.core.trainers.cart import cart_p, cart_weights
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.config import WEIGHT_TYPES, MDLMConfig
from dllm.core.trainers.mdlm import MDLMTrainer
from dllm.data.tokens import prepend_bos
from dllm.fast.model import right_shift_of, unwrapped

_log = logging.getLogger("dllm")

__all__ = ["DreamCollator", "DreamTrainer", "DreamTrainerConfig"]


@dataclass
class DreamTrainerConfig(MDLMConfig):
    """Arguments of :class:`DreamTrainer`: those of :class:`~dllm.core.trainers.mdlm.MDLMConfig`, with two other
    defaults. `loss_weight_type` is "cart[geo_p:P]", "scheduler" or "uniform".

    Raises:
        TypeError, ValueError: as the parent class; a weight type that cannot be read; right_shift_logits is False.

    Example:
        >>> DreamTrainerConfig(output_dir="out", report_to="none").loss_weight_type
        'cart[geo_p:0.3]'
    """

    loss_weight_type: str = field(
        default="cart[geo_p:0.3]",
        metadata={"help": "cart[geo_p:P]: by distance to visible tokens; scheduler: w(t); uniform: 1."},
    )
    right_shift_logits: bool | None = field(
        default=True, metadata={"help": "A token is predicted one position before it, as Dream is trained."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.right_shift_logits:
            raise ValueError(f"right_shift_logits must be True for Dream, got {self.right_shift_logits}")

    def _check_weight_type(self) -> None:
        if cart_p(self.loss_weight_type) is None and self.loss_weight_type not in WEIGHT_TYPES:
            known = ", ".join(("cart[geo_p:0.3]", *WEIGHT_TYPES))
            raise ValueError(f"loss_weight_type must be one of {known}, got {self.loss_weight_type!r}")


@dataclass(kw_only=True)
class DreamCollator(MDLMCollator):
    """Corrupts a batch as :class:`~dllm.core.trainers.collator.MDLMCollator` does, with the weights of CART.

    If a row's first token has a label, BOS comes before all rows: no position could predict that token else.

    Args:
        geo_p: of :func:`~dllm.core.trainers.cart.cart_weights`; None for the parent's weights.
        bos_id: the BOS token; None if there is none.

    Raises:
        ValueError: as the parent class; or BOS is needed and there is none.

    Example:
        >>> import torch
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> def stack(samples):
        ...     return {"input_ids": torch.tensor([s["input_ids"] for s in samples])}
        >>> collate = DreamCollator(
        ...     base=stack, scheduler=LinearAlphaScheduler(), mask_id=3, pad_id=None, vocab_size=10, seed=0, low=0.999,
        ...     right_shift=True, geo_p=0.5, bos_id=1,
        ... )
        >>> batch = collate([{"input_ids": [5, 6]}])
        >>> batch["input_ids"], batch["corruption"]["weight"]
        (tensor([[1, 3, 3]]), tensor([0.2500, 0.1250]))
    """

    geo_p: float | None = None
    bos_id: int | None = None

    def clean(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The collated batch x_0 behind BOS, with labels, not corrupted."""
        batch = super().clean(samples)
        if not bool((batch["labels"][:, :1] != IGNORE).any()):
            return batch
        if self.bos_id is None:
            raise ValueError("a row's first token has a label, so BOS must come before it, and the tokenizer has none")
        return prepend_bos(batch, self.bos_id, IGNORE)

    def _weights(self, masked: Tensor, times: Tensor) -> Tensor:
        return super()._weights(masked, times) if self.geo_p is None else cart_weights(masked, self.geo_p)


class DreamTrainer(MDLMTrainer):
    r"""Trains Dream: masked diffusion with shifted logits, weighted by context (CART) in place of w(t).

    The loss is that of :class:`~dllm.core.trainers.mdlm.MDLMTrainer` with a weight for each masked token, the larger,
    the nearer visible tokens are: with the visible tokens j of its row, prompt and padding among them,

    .. math::
        w_i = \sum_j \tfrac12 p (1 - p)^{|i - j| - 1}

    A row of masks alone weighs nothing. Everything else (normaliser of the whole step, masks, logs, resumption, several
    processes) is as there. The logged `nll` is the mean of the weighted cross-entropy, so `ppl` is comparable under one
    weight type only. A model whose configuration does not name the shift is trained with it all the same, after one
    warning.

    Args:
        args: :class:`DreamTrainerConfig`.
        others: as of :class:`~dllm.core.trainers.mdlm.MDLMTrainer`. For fine-tuning, `data_collator` is a
            :class:`~dllm.data.cutoff.DreamSFTCollator`.

    Raises:
        TypeError, ValueError: as the parent class; `args` is not a DreamTrainerConfig. In training: a row's first token
            has a label and the tokenizer has no BOS.

    Source: Dream (arXiv:2508.15487); the names are those of dLLM 0.1.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny, mask_token_id=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = DreamTrainerConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no",
        ...     )
        ...     samples = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 8
        ...     trainer = DreamTrainer(config, model=model, train_dataset=samples)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        2
    """

    DreamConfig: ClassVar[type[DreamTrainerConfig]] = DreamTrainerConfig

    def __init__(self, args: DreamTrainerConfig, *arguments: Any, **options: Any):
        if not isinstance(args, DreamTrainerConfig):
            raise TypeError(f"args must be a DreamTrainerConfig, got {type(args).__name__}")
        super().__init__(args, *arguments, **options)
        self._warn_of_a_new_shift()

    def _warn_of_a_new_shift(self) -> None:
        """Say once that a model that predicts tokens at their own position learns to predict them one before."""
        if not right_shift_of(unwrapped(self.model)):
            _log.warning(
                "the configuration of the model does not say that a token is predicted one position before it, and %s "
                "trains it so, which samplers do only with right_shift_logits=True: MDLMTrainer keeps its positions",
                type(self).__name__,
            )

    def _make_collator(self, kind: type[MDLMCollator] = DreamCollator, **options: Any) -> MDLMCollator:
        own = dict(geo_p=self._geo_p, bos_id=getattr(self.processing_class, "bos_token_id", None))
        return super()._make_collator(kind, **own, **options)

    def _set_signature_columns_if_needed(self) -> None:
        """transformers' Trainer drops the columns that the model does not take; DreamSFTCollator takes this one."""
        super()._set_signature_columns_if_needed()
        self._signature_columns = sorted({*self._signature_columns, "prompt_len"})

    @property
    def _geo_p(self) -> float | None:
        return cart_p(self.args.loss_weight_type)

    def _compute_loss_weights(self, t: Tensor, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As :meth:`MDLMTrainer._compute_loss_weights`, by CART."""
        if self._geo_p is None:
            return super()._compute_loss_weights(t, inputs, *args, **kwargs)
        masked = kwargs["masked_mask"] if "masked_mask" in kwargs else args[0]
        return cart_weights(masked, self._geo_p)
