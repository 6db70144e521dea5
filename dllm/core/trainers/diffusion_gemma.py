"""Uniform diffusion for DiffusionGemma: the objective, a canvas of each answer behind its clean context."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torchmetrics
from torch import Tensor, nn

from dllm.core.schedulers import LinearAlphaScheduler
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.canvas_collator import CanvasCollator
from dllm.core.trainers.diffusion_gemma_config import DiffusionGemmaTrainerConfig
from dllm.core.trainers.utils.metrics import NextTokenNLL, SumOfMeans
from dllm.fast.attention import attention_of
from dllm.fast.uniform.model import DiffusionGemma
from dllm.fast.uniform.training import Canvases, Targets, canvas_loss

__all__ = ["CanvasCollator", "DiffusionGemmaTrainer", "DiffusionGemmaTrainerConfig"]

_OF_IMAGES = ("vision_tower", "embed_vision")


class DiffusionGemmaTrainer(DiffusionTrainer):
    r"""Trains DiffusionGemma by uniform diffusion. The logits of a canvas, [B, L, V], are never stored.

    For a sample, one of its answer's canvases x, of L tokens, is drawn, and t ~ U(time_epsilon, time_max). Each token
    of the canvas is replaced with probability t by one of the whole vocabulary, which makes x_t. The encoder reads the
    clean text; the decoder sees of it what stands before the canvas, c. Then

    .. math::
        loss = \frac{1}{Z} \sum_{samples} \sum_i w(t) \, (-\log p(x_i \mid x_t, c, s))
             + \frac{\lambda}{Z'} \sum_{samples} \sum_j -\log p(y_{j+1} \mid y_{\le j})

    over the positions i of the canvas, or with `loss_positions="corrupted"` the replaced ones, and over all tokens y of
    the text (the encoder's loss, with lambda = `encoder_loss_weight`). w is 1, or 1 / (1 - t) for
    `loss_weight_type="reweighted"`. Z and Z' count what is summed for `loss_norm_type="token"`; for "sequence" they
    count samples, and each sum is a mean over its sample; for "batch" they count samples. Both are taken over the whole
    optimizer step, all its forwards and all ranks.

    s is the self-conditioning signal. With probability `self_conditioning` a sample is run twice: a first pass with
    s = 0 and without gradient gives the embedding that each position expects, under softmax at temperature 1, and this
    is s of the second. For all other samples s is zero, exactly, as in the first step of sampling. No gradient passes
    through s, nor into the embedding that it is a mean of.

    Not trained are the routers of the experts (`freeze_router`) and what reads images: their `requires_grad` becomes
    False. Draws follow from the run's seed, the sample's tokens and the epoch alone
    (:class:`~dllm.core.trainers.canvas_collator.CanvasCollator`). Logs have `encoder_nll` beside `nll` and `ppl`, which
    are those of canvases. :class:`~dllm.core.trainers.base.trainer.DiffusionTrainer` does everything else.

    Args:
        args: :class:`DiffusionGemmaTrainerConfig`.
        model: a `DiffusionGemmaForBlockDiffusion` of transformers, perhaps with an adapter that leaves its head as it
            is. An adapter has weights of its own in encoder and decoder, which share theirs: it cannot be merged.
        tokenizer, processing_class: two names of one argument; it names the end-of-text token, which fills canvases
            behind an answer, and the padding token. Without one, the first end-of-text token of the model's
            generation_config fills them.
        data_collator: gives `input_ids` and `labels`, padded on the right, without labels of padding. By default the
            tokenizer pads samples.
        options: other arguments of transformers' Trainer.

    Raises:
        TypeError, ValueError: as :class:`~dllm.core.trainers.mdlm.MDLMTrainer`, but no mask token is needed; `args` is
            not a DiffusionGemmaTrainerConfig; the model is another, of transformers before 5.12, its head is no plain
            nn.Linear, or its attention neither eager nor sdpa; gradient checkpointing would lose the decoder's context
            (transformers before 5.17); weights are sharded (FSDP, ZeRO-3); there is no end-of-text token. In training:
            CanvasCollator refuses a batch.

    Source: google-deepmind/gemma, `gemma/diffusion`, with the first step's signal of zero as transformers samples it.

    Example:
        >>> import contextlib, tempfile
        >>> import transformers
        >>> if hasattr(transformers, "DiffusionGemmaConfig"):
        ...     layers = dict(num_hidden_layers=1, layer_types=["full_attention"], num_experts=2, top_k_experts=1)
        ...     heads = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=8, global_head_dim=8)
        ...     size = dict(vocab_size=50, hidden_size=8, intermediate_size=8, moe_intermediate_size=8)
        ...     text = transformers.DiffusionGemmaTextConfig(**layers, **heads, **size)
        ...     small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8)
        ...     vision = transformers.AutoConfig.for_model("gemma4_vision", **small)
        ...     parts = dict(text_config=text, vision_config=vision)
        ...     config = transformers.DiffusionGemmaConfig(**parts, canvas_length=4, image_token_id=49)
        ...     model = transformers.DiffusionGemmaForBlockDiffusion(config)
        ...     with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        ...         config = DiffusionGemmaTrainerConfig(
        ...             output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...             use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no",
        ...         )
        ...         data = [{"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}] * 8
        ...         trainer = DiffusionGemmaTrainer(config, model=model, train_dataset=data)
        ...         assert trainer.train().global_step == 2
    """

    predicted: ClassVar[str] = "canvas_tokens"
    normalizers: ClassVar[tuple[int, ...]] = (2,)  # of canvases and of texts

    def __init__(self, args: DiffusionGemmaTrainerConfig, model: nn.Module | None = None, **options: Any):
        if not isinstance(args, DiffusionGemmaTrainerConfig):
            raise TypeError(f"args must be a DiffusionGemmaTrainerConfig, got {type(args).__name__}")
        if self._loss_is_replaced():
            raise ValueError(f"compute_loss must be this library's own, got another, of {type(self).__name__}")
        self.parts = _checked(model, args)
        self.scheduler = LinearAlphaScheduler()
        _freeze(self.parts.model, args.freeze_router)
        super().__init__(args, model, **options)
        if kind := _sharding(self):
            raise ValueError(
                f"each process must hold all weights, got {kind}: encoder and decoder share theirs, and would be "
                "sharded apart; start with ddp, zero1 or zero2 of scripts/accelerate_configs"
            )

    def _find_mask_id(self) -> None:
        """There is no mask token."""
        return None

    def _make_collator(self) -> CanvasCollator:
        shared, ends = self._collator_options(), self._end_ids()
        if not ends:
            raise ValueError("the tokenizer or the model's generation_config must name an end-of-text token")
        return CanvasCollator(
            **shared,
            low=self.args.time_epsilon,
            high=self.args.time_max,
            uniform_weight=self.args.loss_weight_type == "uniform",
            canvas_length=self.parts.canvas_length,
            fill_id=ends[0],
            end_ids=ends,
            corrupted_only=self.args.loss_positions == "corrupted",
            next_tokens=self.args.encoder_loss_weight > 0,
            self_conditioning=self.args.self_conditioning,
            image_id=self.parts.image_token_id,
        )

    def _end_ids(self) -> tuple[int, ...]:
        """The end-of-text tokens, the tokenizer's first."""
        holders = self.processing_class, getattr(self.parts.model, "generation_config", None), self.parts.text_config
        found = [getattr(holder, "eos_token_id", None) for holder in holders]
        listed = [ids if isinstance(ids, (list, tuple)) else [ids] for ids in found if ids is not None]
        return tuple(dict.fromkeys(int(token) for ids in listed for token in ids))

    def _probe_model(self, model: nn.Module, device: torch.device) -> None:
        """What the model attends to is given by masks that the loss makes itself."""
        _check_checkpointing(self.parts, any(getattr(m, "gradient_checkpointing", False) for m in model.modules()))

    def _text_columns(self, inputs: Mapping[str, Any]) -> int:
        return inputs["input_ids"].shape[1] + inputs["decoder_input_ids"].shape[1]

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        """As the base class says, but for the second result: sums of both terms, float32 [B, 2]."""
        self._check_batch(model, inputs)
        corruption, tokens, canvas = inputs[CORRUPTION], inputs["input_ids"], inputs["decoder_input_ids"]
        sample, next_sample = corruption["rows"] // canvas.shape[1], corruption["next_rows"] // tokens.shape[1]
        weight = self._normalized_weight(corruption["weight"], sample, corruption["maskable"])
        next_weight = self._normalized_weight(scale.new_ones(len(next_sample)), next_sample, corruption["pairs"])
        loss, nll, next_nll = canvas_loss(
            model,
            self.parts,
            Canvases(tokens=tokens, canvas=canvas, begin=corruption["begin"], conditioned=corruption["conditioned"]),
            Targets(corruption["rows"], corruption["targets"], weight * scale[0]),
            Targets(
                corruption["next_rows"],
                corruption["next_targets"],
                next_weight * (self.args.encoder_loss_weight * scale[1]),
            ),
        )
        of_samples = nll.new_zeros(len(tokens), 2)
        of_samples[:, 0].index_add_(0, sample, corruption["weight"] * nll)
        of_samples[:, 1].index_add_(0, next_sample, next_nll)
        return loss, of_samples

    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        counts = _counts(batch[CORRUPTION])
        return counts.sum(0) if self.args.loss_norm_type == "token" else torch.full_like(counts[0], len(counts))

    def _metrics(self, device: torch.device) -> dict[str, torchmetrics.Metric]:
        of_texts = {"encoder_nll": NextTokenNLL(device)} if self.args.encoder_loss_weight else {}
        return super()._metrics(device) | of_texts

    def _record_batch(self, split: str, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        if split == "train":  # prediction_step records the others, without repeated samples
            self._update_meter("train", nll, _counts(corruption))
            self.throughput.update(corruption["lengths"], len(corruption["rows"]))

    def _record_evaluation(self, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        nll, counts = self.accelerator.gather_for_metrics((nll, _counts(corruption)))
        self._update_meter("eval", nll, counts)
        terms = [self._loss_terms(*pair) for pair in zip(nll.unbind(1), counts.unbind(1), strict=True)]
        terms = terms[: len(self._eval_loss.means)]
        self._eval_loss.update(*(torch.stack(columns, dim=1) for columns in zip(*terms, strict=True)))

    def _new_eval_loss(self) -> SumOfMeans:
        second = self.args.encoder_loss_weight
        return SumOfMeans((1.0, second) if second else (1.0,), self.args.device)

    def _update_meter(self, split: str, nll: Tensor, counts: Tensor) -> None:
        value, next_value = (nll / counts.clamp(min=1)).unbind(1)
        weight, next_weight = counts.unbind(1)
        self.meter.update(split, value=value, weight=weight, next_value=next_value, next_weight=next_weight)


def _counts(corruption: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of each sample have a loss: of its canvas, and of its text, int64 [B, 2]."""
    return torch.stack([corruption["maskable"], corruption["pairs"]], dim=1)


def _checked(model: nn.Module | None, args: DiffusionGemmaTrainerConfig) -> DiffusionGemma:
    """The parts of a model that can be trained."""
    if model is None:
        raise TypeError("model must be a DiffusionGemmaForBlockDiffusion, got None")
    parts = DiffusionGemma(model)
    if "decoder_input_ids" not in inspect.signature(parts.decoder.forward).parameters:
        raise ValueError("DiffusionGemma must be that of transformers 5.12 or later, whose canvas is decoder_input_ids")
    if attention_of(parts.model) not in ("eager", "sdpa"):
        raise ValueError(f"attention must be eager or sdpa, got {attention_of(parts.model)}: load the model with "
                         'attn_implementation="sdpa"')  # fmt: skip
    _check_checkpointing(parts, args.gradient_checkpointing)
    return parts


def _sharding(trainer: DiffusionTrainer) -> str | None:
    """What shards the weights of a run; None where each process holds them all."""
    if trainer.is_fsdp_enabled:
        return "FSDP"
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return "ZeRO-3" if deepspeed is not None and deepspeed.zero_stage == 3 else None


def _check_checkpointing(parts: DiffusionGemma, wanted: bool) -> None:
    """Check that gradient checkpointing keeps what the decoder reads of the encoder."""
    layer = parts.decoder.layers[0]
    if wanted and not getattr(layer, "_can_checkpoint_with_cache", False):
        raise ValueError(
            "gradient checkpointing must keep the context of a canvas, and that of this transformers drops it: leave "
            "gradient_checkpointing False, or install transformers 5.17 or later"
        )


def _freeze(model: nn.Module, routers: bool) -> None:
    """Freeze what reads images, as there are none, and the routers if wanted."""
    frozen = (*_OF_IMAGES, "router") if routers else _OF_IMAGES
    for name, weight in model.named_parameters():
        if set(frozen) & set(name.split(".")):
            weight.requires_grad_(False)
