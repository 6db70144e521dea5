"""What causal pre-training is worth to a diffusion model: diffusion from converted and from random weights.

    OMP_NUM_THREADS=1 python -m benchmarks.a2d_lessons runs/a2d

A model of Qwen3's architecture in the size of the bundled one learns the bundled model's lessons causally, token by
token, and `python -m dllm.pipelines.a2d.convert` makes a diffusion model of it. Four models are trained on the lessons
from there (`ARMS`): by MDLM the converted one, one with random weights for as many steps, and one with random weights
that also gets the steps which the other had causally; by BD3LM the converted one. Each is measured before and after:
the loss on lessons of another seed, nats per token that may be masked, and exact answers to held-out problems.

The optimizer, its schedule and the lessons are those of the bundled model (`dllm.demo.training`), each part with a
schedule of its own. The same command resumes an interrupted run. The last line is JSON; a row goes to the results.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import nn

from benchmarks import report, resumable
from benchmarks.resumable import has_checkpoint, once
from dllm.core.trainers import BD3LMConfig, BD3LMTrainer, MDLMConfig, MDLMTrainer
from dllm.demo.answer import decode, encode
from dllm.demo.training import gauge
from dllm.demo.training.curriculum import FORWARDS, Curriculum
from dllm.demo.training.lessons import MAX_LENGTH, Lessons, vocabulary
from dllm.demo.training.optimizer import MuonAdamW, schedule
from dllm.demo.training.questions import TASKS
from dllm.demo.training.score import Score
from dllm.demo.training.train import save_tokenizer
from dllm.models import get_model, get_tokenizer
from dllm.pipelines.a2d.convert import convert

HELD_OUT_SEED, HELD_OUT_STEPS = 1, 4
LOG_EVERY, SAVE_EVERY = 25, 100
COLUMNS = (
    "model",
    "trained by",
    "steps",
    "loss before",
    "loss after",
    "exact before",
    "exact after",
    "95 %",
    "minutes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run; a resumed run must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    causal_steps: int = 800
    steps: int = 400
    block_steps: int = 200
    batch_size: int = 32
    block_size: int = 16
    questions: int = 200
    tokens_per_step: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name != "seed" and getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("block_size", "tokens_per_step"):
            if gauge.GEN_LENGTH % getattr(self, name):
                raise ValueError(f"{name} must divide {gauge.GEN_LENGTH}, got {getattr(self, name)}")
        if self.block_size % self.tokens_per_step:
            raise ValueError(f"tokens_per_step must divide block_size {self.block_size}, got {self.tokens_per_step}")


class Arm(NamedTuple):
    """A model to train by diffusion: its name, whether it is the converted one, the objective and the steps."""

    name: str
    converted: bool
    objective: str
    steps: int


def arms(settings: Settings) -> list[Arm]:
    """The models that are compared.

    "random-longer" has as many steps as the causal training and the diffusion of "converted" together. A step of BD3LM
    takes twice the time of one of MDLM, since a row holds the text twice.
    """
    return [
        Arm("converted", True, "mdlm", settings.steps),
        Arm("random", False, "mdlm", settings.steps),
        Arm("converted-blocks", True, "bd3lm", settings.block_steps),
        Arm("random-longer", False, "mdlm", settings.causal_steps + settings.steps),
    ]


class InOrder:
    """A Trainer on lessons in their order."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class CausalTrainer(InOrder, transformers.Trainer):
    """Next-token prediction on the lessons."""


class DiffusionTrainer(InOrder, MDLMTrainer):
    """Masked diffusion on the lessons."""


class BlockTrainer(InOrder, BD3LMTrainer):
    """Block diffusion on the lessons."""


def causal_model(tokenizer: object) -> nn.Module:
    """A causal model of Qwen3's architecture with random weights, 2.6 million parameters."""
    size = dict(hidden_size=192, intermediate_size=384, num_hidden_layers=6, num_attention_heads=6, head_dim=32)
    ends = dict(pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    size |= dict(num_key_value_heads=6, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH)
    config = transformers.Qwen3Config(**size, **ends, tie_word_embeddings=True, attn_implementation="eager")
    return transformers.Qwen3ForCausalLM(config)


def trainer(
    objective: str, model: nn.Module, tokenizer: object, folder: Path, steps: int, settings: Settings
) -> transformers.Trainer:
    """The Trainer of an objective, "causal", "mdlm" or "bd3lm"; checkpoints go to `folder`."""
    common = arguments_of(folder, settings.seed, steps, FORWARDS)
    lessons = Lessons(tokenizer, settings.batch_size, settings.seed, steps=steps)
    optimizer = MuonAdamW(model, matrix_lr=0.02, other_lr=0.003)
    given = dict(
        model=model.train(),
        train_dataset=Curriculum(lessons, steps=steps, processes=1),
        eval_dataset=Curriculum(Lessons(tokenizer, 64, HELD_OUT_SEED), steps=HELD_OUT_STEPS, processes=1),
        optimizers=(optimizer, schedule(optimizer, steps)),
    )
    if objective == "causal":
        config = transformers.TrainingArguments(**common, prediction_loss_only=True)
        return CausalTrainer(args=config, data_collator=causal_batch, processing_class=tokenizer, **given)
    given |= dict(tokenizer=tokenizer, data_collator=operator.itemgetter(0))
    if objective == "mdlm":
        return DiffusionTrainer(MDLMConfig(**common, loss_weight_type="uniform"), **given)
    return BlockTrainer(BD3LMConfig(**common, loss_weight_type="uniform", block_size=settings.block_size), **given)


def arguments_of(folder: Path, seed: int, steps: int, forwards: int) -> dict[str, object]:
    """The arguments of a Trainer on lessons with so many forwards a step; checkpoints go to `folder`."""
    return dict(
        output_dir=str(folder),
        seed=seed,
        use_cpu=True,
        bf16=True,
        max_steps=steps,
        per_device_train_batch_size=1,  # an item is a whole batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=forwards,
        remove_unused_columns=False,
        max_grad_norm=0.0,
        logging_steps=LOG_EVERY,
        save_strategy="steps",
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        save_only_model=False,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def causal_batch(items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The one item's tokens and labels: the answers that diffusion may mask, without masks."""
    return {name: items[0][name] for name in ("input_ids", "labels")}


def train(run: transformers.Trainer) -> float | None:
    """Train, from the last checkpoint if there is one; returns the seconds, None for a resumed training."""
    resumed, started = has_checkpoint(Path(run.args.output_dir)), time.perf_counter()
    run.train(resume_from_checkpoint=resumed)
    return None if resumed else time.perf_counter() - started


def causal_accuracy(model: nn.Module, tokenizer: object, settings: Settings) -> Score:
    """Exact answers of a causal model, the most likely token at each position."""
    asked, correct, tokens, started = TASKS["problems"](settings.questions, HELD_OUT_SEED), 0, 0, time.perf_counter()
    for first in range(0, len(asked), gauge.BATCH_SIZE):
        batch = asked[first : first + gauge.BATCH_SIZE]
        prompt, kept = encode(tokenizer, [question.text for question in batch])
        made = model.eval().generate(
            input_ids=prompt, attention_mask=kept, max_new_tokens=gauge.GEN_LENGTH, do_sample=False
        )[:, prompt.shape[1] :]
        correct += sum(q.read(decode(tokenizer, row)) == q.answer for q, row in zip(batch, made.tolist(), strict=True))
        tokens += int((made != tokenizer.eos_token_id).sum()) + len(batch)
    mean = tokens / len(asked)
    return Score(len(asked), correct, mean, mean, time.perf_counter() - started)


def accuracy(model: nn.Module, tokenizer: object, objective: str, settings: Settings) -> Score:
    """Exact answers of a diffusion model: all tokens as one block, or block by block as BD3LM trained it."""
    blocks = {"sampler": "bd3lm", "block_length": settings.block_size} if objective == "bd3lm" else {}
    asked = dict(questions=settings.questions, tokens_per_step=settings.tokens_per_step, seed=HELD_OUT_SEED)
    return gauge.measure(model.eval(), tokenizer, **asked, **blocks)


def learn_causally(folder: Path, settings: Settings) -> dict[str, object]:
    """Train the causal model, save it as `folder`/causal and convert it to `folder`/a2d; returns its results.

    Its initial weights are saved as `folder`/random.pt.
    """
    torch.manual_seed(settings.seed)
    tokenizer = vocabulary()
    model = causal_model(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "random.pt")
    run = trainer("causal", model, tokenizer, folder / "causal-run", settings.causal_steps, settings)
    loss_before, seconds, loss_after = run.evaluate()["eval_loss"], train(run), run.evaluate()["eval_loss"]
    model.save_pretrained(folder / "causal")
    save_tokenizer(tokenizer, folder / "causal")
    convert(str(folder / "causal"), folder / "a2d")
    score = causal_accuracy(model, tokenizer, settings)
    row = {"objective": "causal", "steps": settings.causal_steps, "seconds": seconds}
    return row | {"loss_before": loss_before, "loss_after": loss_after, "after": score.row()}


def learn_by_diffusion(arm: Arm, folder: Path, settings: Settings) -> dict[str, object]:
    """Train a model by diffusion and save it as `folder`/<arm>; returns its results."""
    torch.manual_seed(settings.seed)
    source = str(folder / "a2d")
    model = get_model(model_name_or_path=source, dtype="float32", attn_implementation="eager")
    tokenizer = get_tokenizer(model_name_or_path=source)
    if not arm.converted:
        model.load_state_dict(torch.load(folder / "random.pt", weights_only=True))
    run = trainer(arm.objective, model, tokenizer, folder / f"{arm.name}-run", arm.steps, settings)
    loss_before, before = run.evaluate()["eval_loss"], accuracy(model, tokenizer, arm.objective, settings)
    seconds = train(run)
    loss_after, after = run.evaluate()["eval_loss"], accuracy(model, tokenizer, arm.objective, settings)
    model.save_pretrained(folder / arm.name)
    save_tokenizer(tokenizer, folder / arm.name)
    losses = {"loss_before": loss_before, "loss_after": loss_after}
    return {**arm._asdict(), "seconds": seconds, **losses, "before": before.row(), "after": after.row()}


def measure(folder: Path, settings: Settings, chosen: Sequence[str]) -> dict[str, dict[str, object]]:
    """Train causally, convert, train the chosen arms; returns the results by name."""
    results = {"causal": once(folder / "causal.json", learn_causally, folder, settings)}
    for arm in arms(settings):
        if arm.name in chosen:
            results[arm.name] = once(folder / f"{arm.name}.json", learn_by_diffusion, arm, folder, settings)
    return results


def cells(name: str, result: dict[str, object]) -> list[str]:
    """A line of the table."""
    before, after = result.get("before"), result["after"]
    low, high = after["interval_95"]
    return [
        name,
        result["objective"],
        str(result["steps"]),
        f"{result['loss_before']:.3f}",
        f"{result['loss_after']:.3f}",
        f"{before['accuracy']:.1%}" if before else "-",
        f"{after['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{result['seconds'] / 60:.0f}" if result["seconds"] else "-",
    ]


def show(settings: Settings, results: dict[str, dict[str, object]]) -> None:
    """Print the table."""
    title = f"exact answers of {settings.questions}, {settings.tokens_per_step} tokens a step; causal: one"
    report.print_table(title, COLUMNS, [cells(name, result) for name, result in results.items()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    how = dict(measure=measure, show=show, slug="qwen3-cpu", arms=[arm.name for arm in arms(Settings())])
    return resumable.main("a2d_lessons", __doc__, Settings, arguments, **how)


if __name__ == "__main__":
    sys.exit(main())
