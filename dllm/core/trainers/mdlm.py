"""Training by masked diffusion, on transformers' Trainer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dllm.configs import TrainingArguments
from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm.core.trainers import ema
from dllm.core.trainers.checks import check_packing, check_padding, check_samples, check_unpadded
from dllm.core.trainers.collator import CORRUPTION, IGNORE, MDLMCollator, padding_collator
from dllm.core.trainers.graphed import training_graphs
from dllm.core.trainers.hooks import Hooks, has_length
from dllm.core.trainers.interruption import StopOnSignal
from dllm.core.trainers.resume import checkpoint_to_resume, whole_checkpoint
from dllm.core.trainers.sharding import check_fsdp, keep_fsdp
from dllm.core.trainers.steps import ReplaceableSteps, loss_of, masked_tokens, replaced_steps
from dllm.core.trainers.utils.curve import draw_curve
from dllm.core.trainers.utils.meters import OnEvaluateMetricsCallback
from dllm.core.trainers.utils.metrics import MeanMetric, NLLMetric, PPLMetric
from dllm.core.trainers.utils.throughput import Flops, Throughput, matmul_rate, peak_memory
from dllm.fast.capture import check_cuda_graph
from dllm.fast.model import check_positions, find_mask_id, input_embedding, position_limit
from dllm.fast.training.loss import masked_loss

_log = logging.getLogger("dllm")

WEIGHT_TYPES = ("scheduler", "uniform")
NORM_TYPES = ("token", "sequence", "batch")


@dataclass
class MDLMConfig(TrainingArguments):
    """Arguments of :class:`MDLMTrainer`: those of transformers' Trainer, and the fields below.

    Raises:
        TypeError: `cuda_graph` is neither None nor a bool.
        ValueError: a field outside its range, or one of transformers that a diffusion loss has no use for.

    Example:
        >>> config = MDLMConfig(output_dir="out", report_to="none", loss_norm_type="sequence")
        >>> config.loss_weight_type
        'scheduler'
    """

    time_epsilon: float = field(default=1e-3, metadata={"help": "The smallest diffusion time t."})
    time_max: float = field(default=1.0, metadata={"help": "The largest; below 1 for a clipped range."})
    antithetic_time: bool = field(default=False, metadata={"help": "Spread the times of a batch evenly."})
    loss_weight_type: str = field(default="scheduler", metadata={"help": "scheduler, w(t); or uniform, 1."})
    loss_norm_type: str = field(default="token", metadata={"help": "Mean over: token, sequence or batch."})
    right_shift_logits: bool = field(default=False, metadata={"help": "A token is predicted one position before it."})
    ema_decay: float | None = field(default=None, metadata={"help": "Keep averaged weights, MDLM's decay is 0.9999."})
    cuda_graph: bool | None = field(
        default=None,
        metadata={"help": "Training steps as CUDA graphs: where it can be done; or True, always; or False."},
    )

    def __post_init__(self):
        check_cuda_graph(self.cuda_graph)
        if not 0 <= self.time_epsilon < self.time_max <= 1:
            raise ValueError(
                f"time_epsilon and time_max must satisfy 0 <= time_epsilon < time_max <= 1, "
                f"got {self.time_epsilon} and {self.time_max}"
            )
        for name, known in (("loss_weight_type", WEIGHT_TYPES), ("loss_norm_type", NORM_TYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and less than 1, got {self.ema_decay}")
        if self.ema_decay is not None and self.load_best_model_at_end:
            raise ValueError("load_best_model_at_end loads weights that are not averaged: leave ema_decay unset")
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor is no part of this loss, got {self.label_smoothing_factor}")
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "dispatch_batches must not be True: a batch's masked tokens cannot be cut into equal shares"
            )
        self.accelerator_config.dispatch_batches = False


class MDLMTrainer(ReplaceableSteps, transformers.Trainer):
    r"""Trains a masked language model by masked diffusion (MDLM, LLaDA), the loss costing what the masked tokens cost.

    For a sample of tokens x with time t ~ U(time_epsilon, time_max), each token that has a label is masked with
    probability 1 - alpha(t), and

    .. math::
        loss = \frac{1}{Z} \sum_{samples} c \, w(t) \sum_{masked\ i} -\log p(x_i \mid x_t)

    with w(t) = -alpha'(t) / (1 - alpha(t) + 1e-6), or 1 for `loss_weight_type="uniform"`. For `loss_norm_type`
    "token" c = 1 and Z counts the tokens that have a label; for "sequence" c = 1 / (tokens of the sample that have a
    label) and Z counts samples; for "batch" c = 1 and Z counts samples. Z is that of the whole optimizer step, all its
    forwards and all ranks: k forwards of n samples are the same step as one of k n.

    Which tokens are masked depends on the run's seed, the sample's tokens and the epoch alone: not on the batch, rank,
    padding or a resumption (:mod:`dllm.core.noising`); `antithetic_time` gives up the independence of the batch. Every
    evaluation masks the same tokens. The logs have, besides what transformers writes: `nll` (sum of w CE over masked /
    tokens that have a label), `ppl` = exp(nll), `tokens_per_second`, `masked_tokens_per_second`, `mfu` (share of the
    rate of a large matrix product, measured here), `peak_memory_gib`. At the end of training, `training_curve.png`
    is drawn in `output_dir`. With `ema_decay`, evaluation and a final `save_model` use the averaged weights, while
    checkpoints hold both.

    On a CUDA device, in one process, the forward, the loss and the backward of a training step are captured as a CUDA
    graph, one for each shape that comes up often, and replayed: the same step, launched at once. What stands against
    it is logged once, and steps are eager then; `cuda_graph=True` makes that an error and every step a replay,
    `cuda_graph=False` makes every step eager. A batch's masked rows are then rounded up to an eighth of its positions
    with rows of weight 0, and a batch that this trainer pads itself has a multiple of 64 positions, so that there are
    few shapes. Gradients lie in the same memory at every step. Where a hook of someone's would have to be called in the
    step, or a layer is dropped by numbers that the host draws, steps are eager.

    The first batch is preceded by five forwards of at most 20 tokens, in which every rank tries what the model sees
    (:mod:`dllm.fast.visibility`). A causal model is refused, and so are padded batches where padding is seen. Samples
    that exceed the model's positions are refused before the first step where the data set is in memory and the
    collator only pads, else in their batch; beyond what rotary positions were made for there is one warning.

    A subclass may replace `_preprocess_inputs`, `_postprocess_outputs` and `_compute_loss_weights`
    (:class:`~dllm.core.trainers.steps.ReplaceableSteps`), or `compute_loss`: as in dLLM 0.1 that is then given batches
    as they were collated, with `labels`, and its loss is divided by the number of the step's forwards, unless it comes
    from this class's `compute_loss` with `num_items_in_batch`. `meter` keeps `nll` and `ppl` of training and
    evaluation; a `compute_loss` of its own feeds them by `self.meter.update(split=..., value=..., weight=...)`.

    Args:
        args: :class:`MDLMConfig`.
        scheduler: alpha(t); linear if not given.
        model: as in transformers' Trainer; with `get_output_embeddings()`.
        tokenizer, processing_class: two names of the same; it names the mask token and the padding token.
        data_collator: gives `input_ids` and `labels`, padded on the right. By default the tokenizer
            pads samples.
        options: all else that transformers' Trainer takes.

    Raises:
        TypeError: args that are no MDLMConfig, both names of the tokenizer, or arguments that transformers refuses.
        ValueError: no mask token is known; several GPUs in one process; compute_metrics or compute_loss_func (there
            are no logits); `cuda_graph=True` where no graph can be captured. In `train`: a causal model, samples that
            exceed the model's positions, padded batches where padding is seen, what
            :class:`~dllm.core.trainers.collator.MDLMCollator` refuses. In `train(resume_from_checkpoint=...)`: a
            checkpoint that holds weights only.
        RuntimeError: in training, `cuda_graph=True` and a step that cannot be captured.

    Source: MDLM (arXiv:2406.07524), LLaDA (arXiv:2502.09992); the names are those of dLLM 0.1.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny, mask_token_id=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = MDLMConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=2,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no",
        ...     )
        ...     trainer = MDLMTrainer(config, model=model, train_dataset=[{"input_ids": [5, 6, 7]}] * 8)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        2
    """

    loss_is_scaled_for_ga = True  # transformers 5: training_step divides by nothing

    def __init__(
        self,
        args: MDLMConfig,
        scheduler: BaseAlphaScheduler | None = None,
        model: nn.Module | None = None,
        *,
        tokenizer: Any = None,
        processing_class: Any = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        **options: Any,
    ):
        if not isinstance(args, MDLMConfig):
            raise TypeError(f"args must be an MDLMConfig, got {type(args).__name__}")
        if tokenizer is not None and processing_class is not None:
            raise TypeError("tokenizer and processing_class are two names of one argument: give one")
        for name in ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"):
            if options.get(name) is not None:
                raise ValueError(f"{name} cannot be used: logits of all positions are never computed")
        if args.n_gpu > 1:
            raise ValueError(
                f"one process must have one GPU, got {args.n_gpu}: start with `accelerate launch` or `torchrun`, or "
                "set CUDA_VISIBLE_DEVICES"
            )
        tokenizer = tokenizer if tokenizer is not None else processing_class
        self.scheduler = scheduler if scheduler is not None else LinearAlphaScheduler()
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=data_collator if data_collator is not None else padding_collator(tokenizer),
            **options,
        )
        self.graphs, self._in_training_step = training_graphs(self, MDLMTrainer.compute_loss), False
        self._positions, self._positions_end = position_limit(self.model)
        if self.graphs is not None and data_collator is None:
            self.data_collator = padding_collator(tokenizer, few_shapes=True, positions=self._positions)
        self._tried, self._why_not_padded = False, None
        self.model_accepts_loss_kwargs = True  # transformers 4: training_step divides by nothing
        # kept in samples even where the model itself takes none
        self.label_names = list(dict.fromkeys(["labels", *(args.label_names or ())]))
        self.mask_id = self._mask_id()
        self.averaged: ema.AveragedWeights | None = None
        self.throughput = Throughput(args.device)
        metrics = {"nll": NLLMetric(args.device), "ppl": PPLMetric(args.device)}
        self.meter = OnEvaluateMetricsCallback(self, metrics=metrics)
        self._noise = {True: self._collator(), False: self._collator()}  # while training; in evaluation, epoch 0
        self._order = torch.Generator()  # of the samples in an epoch
        self._resumed_from: str | None = None
        self.stop = StopOnSignal()
        self.add_callback(Hooks(self))
        self.add_callback(self.stop)
        if replaced := self._replaced():
            _log.info("%s has its own %s: masks are drawn here", type(self).__name__, " and ".join(replaced))

    # What transformers calls, in the order of a run.

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' Trainer; resumes from whole checkpoints only, and follows the uninterrupted run exactly
        (on a data set without length only in its first pass: how long the passes were is not known)."""
        self._resumed_from = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self._resumed_from and self.args.ema_decay is not None:
            if not (Path(self._resumed_from) / ema.FILE).exists():
                raise ValueError(f"{self._resumed_from} holds no averaged weights: leave ema_decay unset")
        try:
            return super().train(self._resumed_from, *args, **kwargs)
        finally:
            if self.graphs is not None:
                self.graphs.clear()
            if self.is_world_process_zero():  # an interrupted run has a curve too
                draw_curve(self.state.log_history, Path(self.args.output_dir) / "training_curve.png")

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers' Trainer; FSDP on a CPU too."""
        check_fsdp(self.args.device)
        super().create_accelerator_and_postprocess()
        keep_fsdp(self)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with new masks in every epoch."""
        self._noise[True].endless = not has_length(self.train_dataset)
        with self._collating(training=True):
            return self._with_own_generator(super().get_train_dataloader())

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler | None:
        """A sampler that would draw its order from torch's generator, which a resumed run sets back only later, draws
        it from one that each epoch seeds."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if getattr(sampler, "generator", self) is None:
            sampler.generator = self._order
        return sampler

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with the same masks every time."""
        with self._collating(training=False):
            return self._with_own_generator(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with the same masks every time."""
        with self._collating(training=False):
            return self._with_own_generator(super().get_test_dataloader(*args, **kwargs))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and Z over all of them and all ranks, int64 []."""
        self.throughput.start()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not self._has_own_loss():
            batches = [self._corrupted(batch, training=True) for batch in batches]
        normalizer = torch.zeros((), dtype=torch.int64, device=device)
        for batch in batches:
            normalizer += self._normalizer(batch).to(device)
        counts = torch.stack([normalizer, torch.full_like(normalizer, bool(self.stop.asked))])
        normalizer, asked = self.accelerator.reduce(counts, reduction="sum")
        self.stop.agreed(asked)
        return batches, normalizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """As transformers' Trainer; with graphs the loss that it asks for comes with its backward already done."""
        self._in_training_step = True
        if self._has_own_loss():  # divided by the forwards of a step, unless ours is asked and says otherwise
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._in_training_step = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """This batch's part of the loss, float32 [], times the number of ranks, whose mean DDP and FSDP take.

        Args:
            model: wrapped or not.
            inputs: a batch of this trainer's data loaders; or one with `input_ids` and `labels`, which is corrupted.
            return_outputs: also return {"nll": float32 [B]}, each sample's sum of w CE.
            num_items_in_batch: Z; that of this batch alone if not given.
        """
        inputs = self._corrupted(inputs, training=model.training)
        ranks = 1 if num_items_in_batch is None else self.args.world_size
        if self._has_own_loss():
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = num_items_in_batch is not None
        normalizer = self._normalizer(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, nll = self._weighted_loss(model, inputs, ranks / normalizer.clamp(min=1).float())
        counts = inputs[CORRUPTION]
        maskable = counts["maskable"]
        if model.training or self._has_own_loss():
            split = "train" if model.training else "eval"
            self.meter.update(split, value=nll / maskable.clamp(min=1), weight=maskable)
        if model.training:
            self.throughput.update(counts["lengths"], len(counts["rows"]))
        return (loss, {"nll": nll}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers' Trainer, with what this trainer measures added to the entries of training."""
        if "loss" in logs:
            logs |= self.meter.finalize("train")
            memory = peak_memory(self.args.device)
            if memory is not None:
                logs["peak_memory_gib"] = memory
            logs |= self.throughput.rates(self._flops, self._peak)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As transformers' Trainer: loss under the run's normalisation, NLL and perplexity of the whole data set."""
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As transformers' Trainer; means are over samples or tokens, never over batches."""
        self._eval_loss = MeanMetric(self.args.device)
        self.meter.reset("eval")
        with nullcontext() if self.averaged is None else self.averaged.applied():
            output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        found = {"loss": self._eval_loss.compute()} | self.meter.finalize("eval")
        output.metrics.update({f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of one batch of evaluation; there are no logits to return."""
        inputs = self._prepare_inputs(inputs)
        if not self._has_own_loss():
            inputs = self._corrupted(inputs, training=False)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if self._has_own_loss():
            self._eval_loss.update(loss, weight=len(inputs["input_ids"]))
            return loss.detach(), None, None
        # samples that fill up the last batch on some ranks are dropped here
        nll, maskable = self.accelerator.gather_for_metrics((outputs["nll"], inputs[CORRUPTION]["maskable"]))
        per_token = nll / maskable.clamp(min=1)
        self.meter.update("eval", value=per_token, weight=maskable)
        if self.args.loss_norm_type == "token":
            self._eval_loss.update(per_token, maskable)
        else:
            self._eval_loss.update(per_token if self.args.loss_norm_type == "sequence" else nll)
        return loss.detach(), None, None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, in checkpoints together with their average; else their average, if one is kept."""
        if self.averaged is None:
            super().save_model(output_dir, _internal_call)
        elif not _internal_call:
            with self.averaged.applied():
                super().save_model(output_dir, _internal_call)
        else:
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                self.averaged.save(output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None, **kwargs: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with self.throughput.paused(), whole_checkpoint(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(model, trial, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device; what the loss needs keeps its dtype, where DeepSpeed would round weights to the model's."""
        model_inputs = super()._prepare_inputs({name: value for name, value in inputs.items() if name != CORRUPTION})
        if CORRUPTION not in inputs:
            return model_inputs
        return model_inputs | {CORRUPTION: {k: v.to(self.args.device) for k, v in inputs[CORRUPTION].items()}}

    # What those are made of.

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        """Loss times `scale`, and each sample's sum of w CE, float32 [B]."""
        chosen, tokens = inputs[CORRUPTION], inputs["input_ids"]
        self._check(model, inputs)
        if "masked" in chosen:
            return self._loss_of_replaced_steps(model, inputs, scale)
        sample = chosen["rows"] // tokens.shape[1]
        weight = chosen["weight"]
        if self.args.loss_norm_type == "sequence":
            weight = weight / chosen["maskable"][sample]
        replayed = self.graphs is not None and self._in_training_step
        loss, nll = (self.graphs.step if replayed else masked_loss)(
            model,
            self._model_inputs(model, inputs),
            rows=chosen["rows"],
            targets=chosen["targets"],
            row_weight=weight * scale,
        )
        if replayed:
            loss.requires_grad_()  # a leaf: the backward that transformers calls finds nothing left to do
        return loss, nll.new_zeros(len(tokens)).index_add_(0, sample, chosen["weight"] * nll)

    def _check(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """That the model, once it is wrapped, can do what the batch asks of it."""
        if not self._tried:
            self._try(model, inputs["input_ids"].device)
            self._tried = True
        check_unpadded(inputs.get("attention_mask"), self._why_not_padded)
        if self._positions is not None and "position_ids" not in inputs:
            columns = self._text_columns(inputs)
            if columns > self._positions:  # of positions that end the collator has told
                check_positions(self.model, columns, "a row of a batch must fit")

    def _try(self, model: nn.Module, device: torch.device) -> None:
        """What the model sees, on a few tokens, by every rank alike."""
        self._why_not_padded = check_padding(model, device)
        check_packing(model, self.data_collator, device)

    def _text_columns(self, inputs: Mapping[str, Any]) -> int:
        """Positions that a row of the batch takes."""
        return inputs["input_ids"].shape[1]

    def _loss_of_replaced_steps(
        self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same, by the steps of a subclass."""
        chosen = inputs[CORRUPTION]
        tokens = masked_tokens(self, chosen)
        weight = tokens.weight
        if self.args.loss_norm_type == "sequence":
            weight = weight / chosen["maskable"][tokens.row]
        loss, nll = loss_of(self, model, self._model_inputs(model, inputs), tokens, weight * scale)
        weighted = (tokens.weight * nll).detach()
        return loss, nll.new_zeros(len(chosen["maskable"])).index_add_(0, tokens.row, weighted)

    def _corrupted(self, inputs: Mapping[str, Any], training: bool) -> Mapping[str, Any]:
        """A batch of x_0 as one of x_t, on the device; one that is corrupted already as it is."""
        if CORRUPTION in inputs:
            return inputs
        clean = self._preprocess_inputs(dict(inputs))
        on_host = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in clean.items()}
        return self._prepare_inputs(self._noise[training].corrupt(on_host, keep_clean=bool(replaced_steps(self))))

    def _replaced(self) -> list[str]:
        """What a subclass has replaced of that which makes the loss."""
        return replaced_steps(self) + (["compute_loss"] if self._has_own_loss() else [])

    def _has_own_loss(self) -> bool:
        return getattr(self.compute_loss, "__func__", None) is not MDLMTrainer.compute_loss

    def _model_inputs(self, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model, wrapped or not, is called with."""
        return {name: value for name, value in inputs.items() if name != CORRUPTION}

    def _normalizer(self, batch: Mapping[str, Any]) -> Tensor:
        """Z of one batch, int64 []."""
        maskable = batch[CORRUPTION]["maskable"] if CORRUPTION in batch else (batch["labels"] != IGNORE).sum(1)
        return maskable.sum() if self.args.loss_norm_type == "token" else maskable.new_tensor(len(maskable))

    def _collator(self, kind: type[MDLMCollator] = MDLMCollator, **options: Any) -> MDLMCollator:
        args = self.args
        return kind(
            base=self.data_collator,
            scheduler=self.scheduler,
            mask_id=self.mask_id,
            pad_id=getattr(self.processing_class, "pad_token_id", None),
            vocab_size=_vocab_size(self.model),
            seed=args.seed,
            low=args.time_epsilon,
            high=args.time_max,
            antithetic=args.antithetic_time,
            uniform_weight=args.loss_weight_type == "uniform",
            right_shift=args.right_shift_logits,
            positions=self._positions if self._positions_end else None,
            **options,
        )

    @contextmanager
    def _collating(self, training: bool) -> Iterator[None]:
        """Within this context data loaders are made with the corrupting collator."""
        corrupting = self._noise[training]
        base, self.data_collator = self.data_collator, corrupting.clean if self._replaced() else corrupting
        try:
            yield
        finally:
            self.data_collator = base

    def _with_own_generator(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        """A loader draws a number when its workers start, which is another moment in a resumed run: not from torch's
        generator, whose numbers dropout goes on with."""
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _mask_id(self) -> int:
        mask_id, vocab_size = find_mask_id(self.model, None, self._names_mask()), _vocab_size(self.model)
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"the mask token must lie in the vocabulary of {vocab_size} tokens, got {mask_id}")
        return mask_id

    def _names_mask(self) -> Any:
        """The tokenizer, if it has a mask token; else the model's config may."""
        return self.processing_class if getattr(self.processing_class, "mask_token_id", None) is not None else None

    def _begin(self) -> None:
        """At the start of `train`, weights in place and nothing trained yet."""
        for name in ("train_dataset", "eval_dataset"):
            check_samples(self.model, getattr(self, name), self.data_collator, name)
        self.meter.reset("train")
        self.throughput = Throughput(self.args.device)
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        self._flops, self._peak = Flops(self.model), matmul_rate(self.args.device, half or torch.float32)
        if self.args.ema_decay is not None:
            self.averaged = ema.AveragedWeights(self.model, self.args.ema_decay)
            if self._resumed_from:
                self.averaged.load(self._resumed_from)


def _vocab_size(model: nn.Module) -> int:
    """Rows of the input embedding, of the whole of it where ZeRO-3 has spread it over ranks."""
    weight = input_embedding(model)
    return getattr(weight, "ds_shape", weight.shape)[0]
