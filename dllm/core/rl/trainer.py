"""diffu-GRPO: the objective, completions of a masked diffusion model judged by rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm.core.rl.collection import RolloutTrainer
from dllm.core.rl.config import DiffuGRPOConfig
from dllm.core.rl.judging import Judge
from dllm.core.rl.loss import policy_loss
from dllm.core.rl.policies import Reference, frozen_copy, without_dropout
from dllm.core.rl.prompts import PromptCollator, Prompts, RepeatedPrompts
from dllm.core.rl.rollouts import Rollouts
from dllm.core.trainers.base.objective import Split
from dllm.core.trainers.batches import CORRUPTION
from dllm.fast.model import block_size_of, check_positions, unwrapped
from dllm.models.sources import need
from dllm.startup import print_main

__all__ = ["DiffuGRPOConfig", "DiffuGRPOTrainer"]


class DiffuGRPOTrainer(RolloutTrainer):
    r"""Trains a masked diffusion model by reinforcement learning (diffu-GRPO).

    In each update the model answers a few prompts, each `num_generations` times, and rewards judge the answers. The
    advantage A of an answer is its reward less the mean of its group. Its probability is estimated in one forward, with
    the whole answer masked and each token of the prompt masked with probability `p_mask_prompt`. The loss of a token is

    .. math::
        -\min\big(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) A\big) + \beta (e^d - d - 1), \qquad
        r = p / p_{old}, \; d = \ln p_{reference} - \ln p

    (:func:`~dllm.core.rl.loss.policy_loss`), over the tokens of an answer up to its end. It is averaged by `loss_type`
    over the whole optimizer step, all its forwards and all ranks. `num_iterations` steps follow on the same answers,
    each with masks of its own. The model that wrote the answers, the reference and the trained model are compared under
    the same masks, and their dropout is off.

    Logits are computed for scored tokens only, inside the LM head (:func:`~dllm.fast.training.loss.loss_of_nll`).
    Answers are sampled in batches by :class:`~dllm.core.samplers.MDLMSampler`. Answers and masks depend on the run's
    seed, the prompt, the update and the answer's place in it, not on the size of forwards, the ranks or padding.
    :class:`~dllm.core.trainers.base.trainer.DiffusionTrainer` does the rest: logs, averaged weights, exact resumption.

    It logs `reward` and `rewards/<name>` (means), `reward_std` (mean deviation within groups), `zero_std` (share of
    groups with equal rewards, which have no gradient), `completion_length` (tokens), `clip_ratio` (share of tokens
    without gradient), `kl` with a reference, and `rollout_seconds` of an update. Evaluation answers each prompt once,
    with `eval_temperature`, and logs `eval_reward`.

    Args:
        args: :class:`DiffuGRPOConfig`.
        model: a masked diffusion model, perhaps with an adapter. With `beta` the reference is the model without its
            adapter, or else a copy of the model as it is now, whole on every rank.
        reward_funcs: rewards, one or several: names (:func:`dllm.core.rewards.reward_names`), or functions
            (completions, prompts=..., **columns) -> numbers. They run in a process of their own, within time limits.
        train_dataset, eval_dataset: rows with `prompt`, a text or messages, and columns for the rewards.
        tokenizer, processing_class: two names of one argument.
        peft_config: of peft; an adapter is added to the model, and trained alone.
        options: other arguments of transformers' Trainer.

    Raises:
        TypeError, ValueError: as :class:`~dllm.core.trainers.mdlm.MDLMTrainer`; `args` is not a DiffuGRPOConfig; a
            reward is unknown; prompts cannot be used; prompt and completion exceed the model's positions; the model
            attends block by block; DeepSpeed ZeRO-3. In training: a reward does not give a number for each completion.
        RewardError: a reward raises an error, or rewards fail on another rank.

    Source: d1 (arXiv:2504.12216), GRPO (arXiv:2402.03300); the names are those of dLLM 0.1 and TRL.

    Example:
        >>> import tempfile
        >>> from dllm.demo.shipped import load_shipped
        >>> model, tokenizer = load_shipped()
        >>> model = model.requires_grad_(True)
        >>> def brevity(completions, **columns):
        ...     return [-float(len(completion)) for completion in completions]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = DiffuGRPOConfig(
        ...         output_dir=folder, report_to="none", eval_strategy="no", save_strategy="no", max_steps=1,
        ...         use_cpu=True, bf16=False, disable_tqdm=True, logging_strategy="no", num_generations=2,
        ...         per_device_train_batch_size=2, max_completion_length=8, steps=8, block_size=8,
        ...     )
        ...     rows = [{"prompt": "What is 2 * 3?"}]
        ...     trainer = DiffuGRPOTrainer(config, model, brevity, train_dataset=rows, tokenizer=tokenizer)
        ...     _ = trainer.train()  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> trainer.state.global_step
        1
    """

    args: DiffuGRPOConfig
    curves: ClassVar = (("reward", "eval_reward"), ("kl",), ("loss",))

    def __init__(
        self,
        args: DiffuGRPOConfig,
        model: nn.Module | None = None,
        reward_funcs: str | Callable | Sequence[str | Callable] = (),
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **options: Any,
    ):
        if not isinstance(args, DiffuGRPOConfig):
            raise TypeError(f"args must be a DiffuGRPOConfig, got {type(args).__name__}")
        if options.get("data_collator") is not None:
            raise ValueError("data_collator cannot be used: prompts are batched as they are")
        self.rewards = Judge(reward_funcs, args.reward_weights)
        tokens = processing_class if tokenizer is None else tokenizer
        if tokens is None:
            raise ValueError("tokenizer must be given: rewards judge texts")
        if peft_config is not None:
            model = _with_adapter(model, peft_config)
        names = dict(tokenizer=tokenizer, processing_class=processing_class)
        data = dict(
            train_dataset=_prompts(train_dataset, tokens, args), eval_dataset=_prompts(eval_dataset, tokens, args)
        )
        super().__init__(args, without_dropout(model), data_collator=PromptCollator(), **names, **data, **options)
        self._check_model(data.values())
        for prompts in filter(None, data.values()):
            self.rewards.rewards.check_columns(prompts[0].columns)
        self._sampling_copy = frozen_copy(self.model, args.device) if self.is_fsdp_enabled else None
        self.reference = Reference(self.model, args.device) if args.beta else None
        if args.sync_ref_model and not self.reference.is_copy:
            raise ValueError("sync_ref_model needs a model without an adapter, whose base is the reference")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights; in a checkpoint that can be resumed also what the next step needs besides."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call or self.args.save_only_model:
            return
        if self.state.global_step % self.args.num_iterations:
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # the rank that writes the weights may not be so far
            self._rollouts.save(self._rollouts_file(output_dir))
            self.accelerator.wait_for_everyone()  # the checkpoint is complete only with the files of all ranks
        if self.args.sync_ref_model and self.args.should_save:
            self.reference.save(output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent class does, and print the last completion with `log_completions`."""
        super().log(logs, start_time)
        if self.args.log_completions and "loss" in logs and self._shown is not None:
            print_main(self._shown)

    def _make_collator(self) -> PromptCollator:
        return PromptCollator()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> RepeatedPrompts:
        group = self.args.num_generations
        per_step = self.args.completions_per_step // group
        return RepeatedPrompts(
            len(self.train_dataset), per_step, group, self.args.num_iterations, generator=self._sample_order
        )

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        if not self._resumed_from:
            return
        if self.state.global_step % self.args.num_iterations:
            file = self._rollouts_file(self._resumed_from)
            if not file.exists():
                raise ValueError(f"{file} is missing: a run must be resumed with as many processes as it had")
            self._rollouts = Rollouts.load(file)
            saved, wanted = len(self._rollouts.prompts), self.args.completions_per_step // self.args.world_size
            if saved != wanted:
                raise ValueError(f"{file} must hold the {wanted} completions of a process in a step, got {saved}")
        if self.args.sync_ref_model:
            self.reference.load(self._resumed_from)

    def _on_optimizer_step(self) -> None:
        super()._on_optimizer_step()
        done = self.state.global_step + 1  # transformers counts the step after this
        if self.args.sync_ref_model and done % self.args.ref_model_sync_steps == 0:
            self.reference.follow(self.model_wrapped, self.args.ref_model_mixup_alpha)

    def _weighted_loss(self, model: nn.Module, inputs: Mapping[str, Any], scale: Tensor) -> tuple[Tensor, Tensor]:
        self._check_batch(model, inputs)
        corruption, found = inputs[CORRUPTION], {}
        sample, maskable = corruption["sample"], corruption["maskable"]
        weight = self._normalized_weight(torch.ones_like(sample, dtype=torch.float32), sample, maskable) * scale
        if self.args.loss_type == "dr_grpo":
            weight = weight / self.args.max_completion_length

        def objective(nll: Tensor) -> Tensor:
            found["terms"] = policy_loss(
                -nll,
                corruption.get("old"),
                corruption.get("reference"),
                corruption["advantages"][sample],
                epsilon=self.args.epsilon,
                epsilon_high=self.args.epsilon_high,
                beta=self.args.beta,
            )
            return (weight * found["terms"].loss).sum()

        loss = self._loss_of_nll(model, inputs, objective).loss
        terms = found["terms"]
        self._record("train", clip_ratio=terms.clipped, **({} if terms.kl is None else {"kl": terms.kl}))
        return loss, terms.loss.new_zeros(len(maskable)).index_add_(0, sample, terms.loss.detach())

    def _record_batch(self, split: Split, corruption: Mapping[str, Tensor], nll: Tensor) -> None:
        self.throughput.update(corruption["lengths"], len(corruption["rows"]))

    def _rollouts_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rollouts-{self.args.process_index}-of-{self.args.world_size}.pt"

    def _check_model(self, datasets: Iterable[Prompts | None]) -> None:
        """Check that the model can be trained so, before anything runs."""
        model = unwrapped(self.model)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ValueError("the model must have weights that are trained, got none: model.requires_grad_(True)")
        if block_size_of(model) is not None:
            raise ValueError("diffu-GRPO scores whole rows, so the model must not attend block by block, as it does")
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError("diffu-GRPO samples from whole weights: use FSDP2, or ZeRO up to stage 2, got stage 3")
        for prompts in datasets:
            if prompts is not None:
                columns = prompts.longest + self.args.max_completion_length
                check_positions(model, columns, "prompt and completion must fit", ": set max_prompt_length")


def _prompts(rows: Any, tokenizer: Any, args: DiffuGRPOConfig) -> Any:
    """The rows of a data set as prompts; of several data sets by name."""
    if isinstance(rows, Mapping):
        return {name: _prompts(part, tokenizer, args) for name, part in rows.items()}
    return None if rows is None else Prompts(rows, tokenizer, args.max_prompt_length)


def _with_adapter(model: nn.Module, config: Any) -> nn.Module:
    need("peft", "lora")
    import peft

    return peft.get_peft_model(model, config)
