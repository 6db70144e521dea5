"""Train the shipped model from nothing: about an hour on two CPU cores.

    python -m dllm.demo.training.train runs/demo
    torchrun --nproc-per-node 2 -m dllm.demo.training.train runs/demo    # on CPUs: a process for each core
    python -m dllm.demo.training.train runs/llama --architecture llama   # a causal architecture, made bidirectional

An interrupted run is continued by the same command, with the same batches and the same masks as if it had never
stopped. `runs/demo` then holds the last checkpoint, and at the end `trainer_state.json` with the log and the folder
`model`.

This is :class:`~dllm.core.trainers.MDLMTrainer` with lessons of its own (`lessons.py`, `curriculum.py`) and its own
optimizer (`optimizer.py`). The objective is masked diffusion with uniform weights: the cross-entropy of the masked
tokens of a step, divided by the number of all that might have been masked, about twice as many.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import operator
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.core.trainers.interruption import stopped_by_signals
from dllm.demo.training import gauge
from dllm.demo.training.curriculum import FORWARDS, Curriculum
from dllm.demo.training.lessons import MAX_LENGTH, Lessons, vocabulary
from dllm.demo.training.optimizer import MuonAdamW, schedule
from dllm.exits import exit_code, usage
from dllm.models import bidirectional

LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 25, 100, 600
EVALUATION_PROBLEMS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is made of; a run that is continued must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    architecture: str = "modernbert"
    steps: int = 3900
    batch_size: int = 64
    seed: int = 0
    matrix_lr: float = 0.02
    other_lr: float = 0.003

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"expected an architecture of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"expected a seed from 0 up to 2^32 - 1, got {self.seed}")
        for name in ("matrix_lr", "other_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"expected a finite {name} above 0, got {getattr(self, name)}")


def new_model(tokenizer: object, architecture: str = "modernbert") -> nn.Module:
    """A model of 2.6 million parameters, all of whose layers see the whole canvas; random weights.

    Args:
        tokenizer: what it reads.
        architecture: "modernbert"; or "llama", a causal architecture made bidirectional, as LLaDA is. Like LLaDA's, its
            logits at a position predict the token there; they are not shifted.
    """
    end = tokenizer.eos_token_id
    return ARCHITECTURES[architecture](
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        # on CPUs the backward of torch's fused attention takes longer than all matrix products of such a model
        attn_implementation="eager",
    )


def _modernbert(*, eos_token_id: int, **size: object) -> ModernBertForMaskedLM:
    ends = {"eos_token_id": eos_token_id, "cls_token_id": eos_token_id, "sep_token_id": eos_token_id}
    return ModernBertForMaskedLM(ModernBertConfig(**size, **ends, global_attn_every_n_layers=1))


def _llama(**size: object) -> LlamaForCausalLM:
    # is_causal: what transformers 5 calls such a model, and what tells `shipped.load` one that was saved
    return bidirectional(LlamaForCausalLM(LlamaConfig(**size, is_causal=False, tie_word_embeddings=True)))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"modernbert": _modernbert, "llama": _llama}


class Teacher(MDLMTrainer):
    """The trainer of a run in `config.output_dir`: lessons in their order, and what a reader of its log looks for.

    The log's entries have, besides the trainer's: `seconds` of training so far, those before an interruption among
    them; every EVALUATE_EVERY steps and at the end `accuracy`, exact answers among a few held-out problems.

    Raises:
        ValueError: a batch too small for the processes that share it.
        FloatingPointError: while training, a loss that is not finite; what was saved before it is kept.
    """

    def __init__(self, config: MDLMConfig, settings: Settings):
        torch.manual_seed(settings.seed)
        tokenizer = vocabulary()
        lessons = Lessons(tokenizer, settings.batch_size, settings.seed, steps=settings.steps)
        curriculum = Curriculum(lessons, steps=settings.steps, processes=config.world_size)
        model = new_model(tokenizer, settings.architecture).to(config.device)
        optimizer = MuonAdamW(model, matrix_lr=settings.matrix_lr, other_lr=settings.other_lr)
        super().__init__(
            config,
            model=model,
            tokenizer=tokenizer,
            train_dataset=curriculum,
            data_collator=operator.itemgetter(0),  # an item is a batch
            optimizers=(optimizer, schedule(optimizer, settings.steps)),
            callbacks=[watch := _Watch()],
        )
        self.settings, self.watch = settings, watch

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As MDLMTrainer, with this class's entries."""
        if "loss" in logs:
            step = self.state.global_step
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(f"the loss has become {logs['loss']} by step {step}; a lower rate may help")
            if step % EVALUATE_EVERY == 0 or step == self.state.max_steps:
                logs["accuracy"] = self._accuracy()
            logs["seconds"] = self.watch.seconds
        super().log(logs, start_time)

    def _accuracy(self) -> float:
        """Exact answers among a few held-out problems, one token per step, of a copy of the model: the model's own
        forward is under autocast."""
        with self.throughput.paused():
            copy = new_model(self.processing_class, self.settings.architecture).to(self.model.device).eval()
            copy.load_state_dict(self.model.state_dict())
            return gauge.measure(copy, self.processing_class, questions=EVALUATION_PROBLEMS, seed=1).accuracy


class _Watch(TrainerCallback):
    """Tells how long a run has taken, its part before an interruption included; has its last step logged."""

    def on_train_begin(self, args: MDLMConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        earlier = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        self.began = time.monotonic() - (earlier[-1] if earlier else 0.0)
        if state.global_step and state.is_world_process_zero:
            print(f"continued after step {state.global_step}", flush=True)

    def on_step_end(self, args: MDLMConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_log |= state.global_step == state.max_steps

    @property
    def seconds(self) -> float:
        """Wall time of training so far."""
        return time.monotonic() - self.began


def new_run(folder: Path, settings: Settings, *, cpu: bool) -> Teacher:
    """A run in a folder, which is made if it is missing.

    Raises:
        ValueError: the folder holds a run with other settings, or the batches are too small for so many processes.
    """
    config = MDLMConfig(
        output_dir=str(folder),
        seed=settings.seed,
        use_cpu=cpu,
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # batches come ready made
        gradient_accumulation_steps=FORWARDS,
        remove_unused_columns=False,
        loss_weight_type="uniform",
        max_grad_norm=0.0,
        logging_steps=LOG_EVERY,
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        save_only_model=False,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    with config.main_process_first():
        _keep(settings, folder / "settings.json")
    return Teacher(config, settings)


def finish(run: Teacher) -> None:
    """Train to the last step, from the last checkpoint if there is one, then save the model in half precision."""
    folder = Path(run.args.output_dir)
    with stopped_by_signals(run, "the same command goes on from there"):
        run.train(resume_from_checkpoint=any(folder.glob("checkpoint-*/trainer_state.json")))
    run.save_state()
    if run.args.should_save:
        run.model.half().save_pretrained(folder / "model")
        save_tokenizer(run.processing_class, folder / "model")
        print(f"model: {folder / 'model'}")


def _keep(settings: Settings, path: Path) -> None:
    """Write the settings of a new run; those of one that is there must be the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    kept = asdict(Settings()) | json.loads(path.read_text(encoding="utf-8"))  # an older run lacks newer settings
    if kept != asdict(settings):
        raise ValueError(
            f"expected the settings of the run in {path.parent}, {kept}, got {asdict(settings)}; "
            "another folder starts another run"
        )


def save_tokenizer(tokenizer: object, folder: Path) -> None:
    """Save it so that transformers 4.57 reads it, too: version 5 writes a class name that 4.57 does not know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by the command line's settings; returns the exit code (:mod:`dllm.exits`)."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the model that dllm ships, or continue a run.")
    parser.add_argument("folder", type=Path, help="where the run lives; a run that is there is continued")
    parser.add_argument(
        "--architecture",
        choices=list(ARCHITECTURES),
        default=defaults.architecture,
        help="of the model (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument(
        "--batch-size", type=int, default=defaults.batch_size, help="rows of a step, over all processes"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--matrix-lr", type=float, default=defaults.matrix_lr, help="learning rate of Muon")
    parser.add_argument("--other-lr", type=float, default=defaults.other_lr, help="learning rate of AdamW")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    options = vars(parser.parse_args(arguments))
    folder, cpu = options.pop("folder"), options.pop("cpu")
    if importlib.util.find_spec("accelerate") is None:
        parser.error("training needs accelerate, which is not installed: pip install 'dllm[demo,train]'")

    def work() -> None:
        with usage():
            run = new_run(folder, Settings(**options), cpu=cpu)
        finish(run)

    return exit_code("dllm.demo.training.train", work)


if __name__ == "__main__":
    sys.exit(main())
