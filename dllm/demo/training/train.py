"""Train the bundled model from scratch: about an hour on two CPU cores.

    python -m dllm.demo.training.train runs/demo
    torchrun --nproc-per-node 2 -m dllm.demo.training.train runs/demo    # on CPUs: a process for each core
    python -m dllm.demo.training.train runs/llama --architecture llama   # a causal architecture, made bidirectional

The same command resumes an interrupted run, with the same batches and masks as without the interruption. The folder
holds the last checkpoint, and at the end `trainer_state.json` with the log, and the folder `model`.

This is :class:`~dllm.core.trainers.MDLMTrainer` with its own data (`lessons.py`, `curriculum.py`) and optimizer
(`optimizer.py`). The objective is masked diffusion with uniform weights: the summed cross-entropy of the masked tokens
of a step, divided by the number of tokens that could have been masked, about twice as many.
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
    """The settings of a run; a resumed run must have the same.

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
    """A model of 2.6 million parameters with random weights and full attention in all layers.

    Args:
        tokenizer: gives the vocabulary size and the special tokens.
        architecture: "modernbert"; or "llama", a causal architecture made bidirectional, as LLaDA is. As in LLaDA the
            logits at a position predict the token at that position: there is no right shift.
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
        # on CPUs the backward of torch's fused attention takes longer than all matrix products of a model this small
        attn_implementation="eager",
    )


def _modernbert(*, eos_token_id: int, **size: object) -> ModernBertForMaskedLM:
    ends = {"eos_token_id": eos_token_id, "cls_token_id": eos_token_id, "sep_token_id": eos_token_id}
    return ModernBertForMaskedLM(ModernBertConfig(**size, **ends, global_attn_every_n_layers=1))


def _llama(**size: object) -> LlamaForCausalLM:
    # is_causal=False: how transformers 5 marks such a model, and how `shipped.load` recognises a saved one
    return bidirectional(LlamaForCausalLM(LlamaConfig(**size, is_causal=False, tie_word_embeddings=True)))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"modernbert": _modernbert, "llama": _llama}


class DemoTrainer(MDLMTrainer):
    """MDLMTrainer on the lessons in order, with two more log entries.

    `seconds`: training time so far, including the time before an interruption; `accuracy`: exact answers among a few
    held-out problems, every EVALUATE_EVERY steps and at the end.

    Raises:
        ValueError: the batch is too small for the number of processes.
        FloatingPointError: the loss became NaN or infinite during training; earlier checkpoints are kept.
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
            data_collator=operator.itemgetter(0),  # an item is a whole batch
            optimizers=(optimizer, schedule(optimizer, settings.steps)),
            callbacks=[timer := _Timer()],
        )
        self.settings, self.timer = settings, timer

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add this class's entries to the log."""
        if "loss" in logs:
            step = self.state.global_step
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(f"the loss has become {logs['loss']} by step {step}; a lower rate may help")
            if step % EVALUATE_EVERY == 0 or step == self.state.max_steps:
                logs["accuracy"] = self._accuracy()
            logs["seconds"] = self.timer.seconds
        super().log(logs, start_time)

    def _accuracy(self) -> float:
        """Accuracy on a few held-out problems, one token per step, measured on a copy of the model in float32: the
        model's own forward runs under autocast."""
        with self.throughput.paused():
            copy = new_model(self.processing_class, self.settings.architecture).to(self.model.device).eval()
            copy.load_state_dict(self.model.state_dict())
            return gauge.measure(copy, self.processing_class, questions=EVALUATION_PROBLEMS, seed=1).accuracy


class _Timer(TrainerCallback):
    """Measures the training time of a run, including the time before an interruption; makes the last step be logged."""

    def on_train_begin(self, args: MDLMConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        earlier = [entry["seconds"] for entry in state.log_history if "seconds" in entry]
        self.began = time.monotonic() - (earlier[-1] if earlier else 0.0)
        if state.global_step and state.is_world_process_zero:
            print(f"continued after step {state.global_step}", flush=True)

    def on_step_end(self, args: MDLMConfig, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_log |= state.global_step == state.max_steps

    @property
    def seconds(self) -> float:
        """Training time so far, s."""
        return time.monotonic() - self.began


def new_run(folder: Path, settings: Settings, *, cpu: bool) -> DemoTrainer:
    """A new or resumable run in a folder, which is created if missing.

    Raises:
        ValueError: the folder has a run with other settings, or the batches are too small for the number of processes.
    """
    config = MDLMConfig(
        output_dir=str(folder),
        seed=settings.seed,
        use_cpu=cpu,
        max_steps=settings.steps,
        per_device_train_batch_size=1,  # an item is a whole batch; see Curriculum
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
        _save_settings(settings, folder / "settings.json")
    return DemoTrainer(config, settings)


def finish(run: DemoTrainer) -> None:
    """Train to the last step, resuming from the last checkpoint if there is one; then save the model in float16."""
    folder = Path(run.args.output_dir)
    with stopped_by_signals(run, "the same command resumes the run"):
        run.train(resume_from_checkpoint=any(folder.glob("checkpoint-*/trainer_state.json")))
    run.save_state()
    if run.args.should_save:
        run.model.half().save_pretrained(folder / "model")
        save_tokenizer(run.processing_class, folder / "model")
        print(f"model: {folder / 'model'}")


def _save_settings(settings: Settings, path: Path) -> None:
    """Write the settings of a new run; those of an existing run must be equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    kept = asdict(Settings()) | json.loads(path.read_text(encoding="utf-8"))  # older runs lack newer settings
    if kept != asdict(settings):
        raise ValueError(
            f"expected the settings of the run in {path.parent}, {kept}, got {asdict(settings)}; "
            "another folder starts another run"
        )


def save_tokenizer(tokenizer: object, folder: Path) -> None:
    """Save a tokenizer so that transformers 4.57 can read it: version 5 writes a class name unknown to 4.57."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the bundled model, or resume a run.")
    parser.add_argument("folder", type=Path, help="folder of the run; an existing run is resumed")
    parser.add_argument(
        "--architecture",
        choices=list(ARCHITECTURES),
        default=defaults.architecture,
        help="default: %(default)s",
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument(
        "--batch-size", type=int, default=defaults.batch_size, help="rows per step, all processes together"
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
