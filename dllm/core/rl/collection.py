"""The rollouts of an optimizer step: prompts answered by the model, judged by rewards, and scored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from accelerate.utils import gather_object
from torch import Tensor, nn

from dllm.core.rewards import RewardError
from dllm.core.rl.config import DiffuGRPOConfig
from dllm.core.rl.judging import Judge
from dllm.core.rl.loss import group_advantages
from dllm.core.rl.policies import Reference, copy_weights
from dllm.core.rl.prompts import Prompt
from dllm.core.rl.rollouts import Rollouts, lengths_to_eos, rollout_seeds
from dllm.core.samplers import MDLMSampler
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.base.objective import Split
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.utils.metrics import EntryMean
from dllm.fast.model import right_shift_of, unwrapped
from dllm.fast.training.loss import MaskedLoss, loss_of_nll


class RolloutTrainer(DiffusionTrainer):
    """A Trainer whose batches are answers of the model to prompts.

    :class:`~dllm.core.rl.trainer.DiffuGRPOTrainer` adds the loss. Every rank answers its own prompts; rewards are
    gathered, as the completions of a group may lie on several ranks.
    """

    args: DiffuGRPOConfig
    rewards: Judge
    reference: Reference | None
    _rollouts: Rollouts | None = None
    _sampling_copy: nn.Module | None = None
    _shown: str | None = None  # the last prompt with its first completion and the rewards

    @property
    def right_shift_logits(self) -> bool:
        """Whether p predicts the token at p + 1: the argument, else what the model's configuration says, else False."""
        given = self.args.right_shift_logits
        return bool(right_shift_of(self.model)) if given is None else given

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, answered and judged, and Z over all of them and all ranks, int64 []."""
        prompts = [one for batch in itertools.islice(epoch_iterator, num_batches) for one in batch["prompts"]]
        batches = self._batches(prompts) if prompts else []
        return super().get_batch_samples(iter(batches), len(batches), device)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, None, None]:
        """Answer the prompts of an evaluation batch, and record the rewards of the answers."""
        prompts = inputs["prompts"]
        seeds = rollout_seeds([one.tokens for one in prompts], [0] * len(prompts), update=0, run_seed=self.args.seed)
        completions, lengths = self._answers(prompts, seeds, self.args.eval_temperature)
        judged = torch.cat([self._judged(prompts, completions, lengths), lengths[:, None].double()], dim=1)
        judged = self.accelerator.gather_for_metrics(judged.to(self.args.device))
        self._record_rewards("eval", judged[:, :-1], judged[:, -1])
        return None, None, None

    def _batches(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The batches of an optimizer step, on new answers if those of the last ones are used up."""
        iteration = self.state.global_step % self.args.num_iterations
        if iteration == 0:
            started = time.perf_counter()
            with self.throughput.paused():
                self._collect(prompts)
            self._record("train", rollout_seconds=time.perf_counter() - started)
        return [self._batch(chosen, iteration) for chosen in self._forwards(len(prompts))]

    def _forwards(self, count: int) -> list[slice]:
        """The completions of each forward."""
        size = self.args.per_device_train_batch_size
        return [slice(first, first + size) for first in range(0, count, size)]

    def _batch(self, chosen: slice, iteration: int) -> dict[str, Any]:
        return self._rollouts.batch(
            chosen,
            iteration,
            mask_id=self.mask_id,
            pad_id=getattr(self.processing_class, "pad_token_id", None) or 0,
            p_mask_prompt=self.args.p_mask_prompt,
            right_shift=self.right_shift_logits,
        )

    def _collect(self, prompts: Sequence[Prompt]) -> None:
        """Answer the prompts of this process, judge the answers together with those of all others, and score them."""
        tokens, places = [one.tokens for one in prompts], self._places(len(prompts), self.args.process_index)
        update = self.state.global_step // self.args.num_iterations
        seeds = rollout_seeds(tokens, places.tolist(), update, self.args.seed)
        completions, lengths = self._answers(prompts, seeds, self.args.temperature)
        judged = self._judged(prompts, completions, lengths)
        self._record_rewards("train", judged, lengths)
        self._rollouts = Rollouts(tokens, completions, lengths, seeds, self._advantages(judged, places))
        if self.args.num_iterations > 1:
            self._rollouts.old = self._scores(self.model_wrapped, range(1, self.args.num_iterations))
        if self.reference is not None:
            with self.reference.of(self.model_wrapped) as model:
                self._rollouts.reference = self._scores(model, range(self.args.num_iterations))

    def _places(self, count: int, rank: int) -> Tensor:
        """The places of a rank's completions among those of all ranks, in which groups lie together."""
        size, ranks = self.args.per_device_train_batch_size, self.args.world_size
        return torch.arange(count * ranks).view(-1, ranks, size)[:, rank].flatten()  # a forward of each rank in turn

    def _answers(self, prompts: Sequence[Prompt], seeds: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Completions, int64 [n, max_completion_length], and their lengths, int64 [n], on the CPU."""
        model, length = self._sampling_model(), self.args.max_completion_length
        sampler, settings = MDLMSampler(model, self.processing_class), self._sampler_settings(temperature)
        size, training, found = self.args.generation_batch_size or len(prompts), model.training, []
        model.eval()
        try:
            for first in range(0, len(prompts), size):
                rows = [list(one.tokens) for one in prompts[first : first + size]]
                with self.compute_loss_context_manager():
                    canvas = sampler.sample(rows, seed=seeds[first : first + size].tolist(), **settings).cpu()
                found += [line[len(row) : len(row) + length] for line, row in zip(canvas, rows, strict=True)]
        finally:
            model.train(training)
        completions = torch.stack(found)
        ends = (getattr(self.processing_class, name, None) for name in ("eos_token_id", "eot_token_id"))
        return completions, lengths_to_eos(completions, [end for end in ends if end is not None])

    def _sampler_settings(self, temperature: float) -> dict[str, Any]:
        return dict(
            max_new_tokens=self.args.max_completion_length,
            steps=self.args.steps,
            block_size=self.args.block_size,
            temperature=temperature,
            remasking=self.args.remasking,
            cfg_scale=self.args.cfg_scale,
            right_shift_logits=self.right_shift_logits,
            stop_at_eos=getattr(self.processing_class, "eos_token_id", None) is not None,
        )

    def _sampling_model(self) -> nn.Module:
        """The model that answers: the trained one, or a whole copy with its weights where they are sharded."""
        if self._sampling_copy is None:
            return unwrapped(self.model)
        copy_weights(self.model_wrapped, self._sampling_copy)
        return self._sampling_copy

    def _judged(self, prompts: Sequence[Prompt], completions: Tensor, lengths: Tensor) -> Tensor:
        """The rewards of completions, float64 [n, rewards]; NaN where a reward does not apply."""
        texts = [
            self.processing_class.decode(line[:length], skip_special_tokens=True)
            for line, length in zip(completions.tolist(), lengths.tolist(), strict=True)
        ]
        found = self._rewards_on_all_ranks([one.columns for one in prompts], texts)
        named = ", ".join(
            f"{name} {value:g}" for name, value in zip(self.rewards.names, found[0].tolist(), strict=True)
        )
        self._shown = f"{self.processing_class.decode(prompts[0].tokens)}{texts[0]}\n[{named}]"
        return found

    def _rewards_on_all_ranks(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Tensor:
        """The rewards, float64 [n, rewards]. Every rank calls this: if they fail on one, no other waits for it."""
        found, failure = None, None
        try:
            found = self.rewards(rows, texts)
        except Exception as error:
            failure = error
        failures = gather_object([None if failure is None else f"{type(failure).__name__}: {failure}"])
        if failure is not None:
            raise failure
        for rank, told in enumerate(failures):
            if told is not None:
                raise RewardError(f"the rewards failed on rank {rank}: {told}")
        return found

    def _advantages(self, judged: Tensor, places: Tensor) -> Tensor:
        """The advantages of this rank's completions, float32 [n]. Every rank calls this."""
        mine = self.rewards.total(judged).to(self.args.device)
        of_ranks = torch.cat([self._places(len(places), rank) for rank in range(self.args.world_size)])
        everything = torch.empty(len(of_ranks), dtype=torch.float64)
        everything[of_ranks] = self.accelerator.gather(mine).cpu()
        spread = everything.view(-1, self.args.num_generations).std(1)
        self._record("train", reward_std=spread, zero_std=(spread == 0).double())
        advantages = group_advantages(everything, self.args.num_generations, scaled=self.args.scale_rewards)
        return advantages[places].float()

    @torch.no_grad()
    def _scores(self, model: nn.Module, iterations: Iterable[int]) -> Tensor:
        """Log-probabilities of the completions under the masks of these iterations, float32 [iterations, n, C]."""
        completions = self._rollouts.completions
        found = torch.zeros(self.args.num_iterations, *completions.shape)
        for iteration, chosen in itertools.product(iterations, self._forwards(len(completions))):
            inputs = self._prepare_inputs(self._batch(chosen, iteration))
            with self.compute_loss_context_manager():
                nll = self._loss_of_nll(model, inputs, torch.sum).nll
            corruption = inputs[CORRUPTION]
            found[iteration, chosen][corruption["sample"].cpu(), corruption["column"].cpu()] = -nll.cpu()
        return found

    def _loss_of_nll(
        self, model: nn.Module, inputs: Mapping[str, Any], objective: Callable[[Tensor], Tensor]
    ) -> MaskedLoss:
        """:func:`dllm.fast.training.loss.loss_of_nll` of the scored tokens, with guidance where there is some."""
        corruption, given, scale = inputs[CORRUPTION], self._model_inputs(model, inputs), self.args.cfg_scale
        if scale:
            hidden = given | {"input_ids": self._without_prompt(given["input_ids"], corruption["lengths"])}
            given = {name: torch.cat([tensor, hidden[name]]) for name, tensor in given.items()}
        rows = dict(rows=corruption["rows"], targets=corruption["targets"])
        return loss_of_nll(model, given, **rows, objective=objective, guidance=scale)

    def _without_prompt(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The rows with masks for all their tokens."""
        column = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where(column < lengths[:, None], self.mask_id, tokens)

    def _metrics(self, device: torch.device) -> dict[str, torchmetrics.Metric]:
        names = ["reward", "reward_std", "zero_std", "completion_length", "clip_ratio", "rollout_seconds"]
        names += ["kl"] if self.args.beta else []
        names += [f"rewards/{name}" for name in self.rewards.names]
        return {name: EntryMean(name, device) for name in names}

    def _record(self, split: Split, **values: float | Tensor) -> None:
        self.meter.update(split, values=values)

    def _record_rewards(self, split: Split, judged: Tensor, lengths: Tensor) -> None:
        each = {
            f"rewards/{name}": column[~column.isnan()]
            for name, column in zip(self.rewards.names, judged.T, strict=True)
        }
        self._record(split, reward=self.rewards.total(judged), completion_length=lengths, **each)
