"""What the bundled model learns as an Edit Flow: exact answers of texts that begin as masks, or as nothing.

    OMP_NUM_THREADS=1 python -m benchmarks.edit_lessons runs/edit

Two models of Edit Flows take over the bundled model's weights (:meth:`dllm.models.EditFlowModel.from_backbone`) and
learn its lessons by :class:`~dllm.core.trainers.EditFlowTrainer`. For the arm "masks" an answer begins as so many
masks, of which the model deletes what it does not need; for the arm "empty" it begins as nothing, and all is inserted.
Each is measured before and after: the loss on lessons of another seed, nats per token of x_1, and exact answers to
held-out problems, at temperatures 0 and 1 and two sizes of a step (before: one batch of problems, one setting). The
lengths of a few answers are recorded at each time of sampling.

The optimizer, its schedule and the lessons are those of the bundled model (`dllm.demo.training`), without the tails,
which mask a solution from the left to the right, and the sums that it gets with them. The same command resumes an
interrupted run; `--arm` runs one arm of it. The last line is JSON; a row goes to the results, from which `python -m
benchmarks.plot` draws docs/edit_lengths.svg.
"""

from __future__ import annotations

import math
import operator
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks import report, resumable
from benchmarks.a2d_lessons import HELD_OUT_SEED, HELD_OUT_STEPS, InOrder, arguments_of, train
from benchmarks.resumable import once
from dllm.core.noising import diffusion_times
from dllm.core.samplers import EditFlowSampler
from dllm.core.schedulers import get_kappa_scheduler_class
from dllm.core.trainers import EditFlowTrainer, EditFlowTrainerConfig
from dllm.core.trainers.edit_collator import make_x0_sampler
from dllm.demo.answer import decode, encode
from dllm.demo.shipped import SHIPPED
from dllm.demo.training import gauge
from dllm.demo.training.lessons import MAX_LENGTH, Batch, Lessons
from dllm.demo.training.optimizer import MuonAdamW, schedule
from dllm.demo.training.questions import TASKS, Question
from dllm.demo.training.score import Score
from dllm.demo.training.train import save_tokenizer
from dllm.models import EditFlowModel, get_model, get_tokenizer
from dllm_kernels import philox

ARMS = ("masks", "empty")
FORWARDS = 2  # of a step: word problems, other conversations
EPSILON = 1e-3  # of the time, in training and in sampling
FEWEST_STEPS = (0.01, 0.0)  # tau and temperature before training
SAMPLINGS = (FEWEST_STEPS, (0.01, 1.0), (0.001, 0.0), (0.001, 1.0))
SHOWN = ("What is 6 * 7?", "What is 48 + 24?")  # of the lengths, and three problems
SHOWN_PROBLEMS, SHOWN_TAU = 3, 0.01
COLUMNS = (
    "x_0",
    "tau",
    "temperature",
    "exact before",
    "exact after",
    "95 %",
    "forwards",
    "tokens",
    "loss before",
    "loss after",
    "minutes",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run; a resumed run must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 1400
    batch_size: int = 32
    mask_length: int = 56  # the longest answer has 53 tokens, its end token included
    questions: int = 200
    kappa: str = "linear"
    max_w: float = 20.0
    loss_norm_type: str = "batch"  # all tokens weigh the same, as for the bundled model
    matrix_lr: float = 0.02
    other_lr: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "mask_length", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("max_w", "matrix_lr", "other_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"expected a finite {name} above 0, got {getattr(self, name)}")
        get_kappa_scheduler_class(self.kappa)


class EditLessons(Dataset):
    """The lessons as pairs of x_0 and x_1, an item for each forward pass: a whole batch.

    x_1 is a conversation up to the end token of its last answer; x_0 is the same without this answer, with `masks`
    masks in its place, but no more than there are positions. An item has `x0_ids` and `x1_ids`, the `times` of the
    rows, spread evenly over (0, 1 - EPSILON), and `seeds`, which depend on the step, as small talk repeats.

    Args:
        tokenizer: of the bundled model.
        steps: of the run.
        batch_size: conversations per step.
        seed: of the lessons.
        masks: of x_0; 0 for none.

    Example:
        >>> lesson = EditLessons(get_tokenizer(model_name_or_path=SHIPPED), steps=9, batch_size=4, seed=0, masks=5)[0]
        >>> [x0[:-5] == x1[: len(x0) - 5] for x0, x1 in zip(lesson["x0_ids"], lesson["x1_ids"], strict=True)]
        [True, True, True]
    """

    def __init__(self, tokenizer: object, *, steps: int, batch_size: int, seed: int, masks: int):
        self.end, self.steps = tokenizer.eos_token_id, steps
        # sums and tails begin after a third of the steps that lessons are told of
        self.lessons = Lessons(tokenizer, batch_size, seed, steps=3 * steps)
        self.x0 = make_x0_sampler(f"masks[length:{masks}]" if masks else "empty", tokenizer.mask_token_id)

    def __len__(self) -> int:
        return self.steps * FORWARDS

    def __getitem__(self, item: int) -> dict[str, object]:
        number, forward = divmod(item, FORWARDS)
        batch = self.lessons[number][forward]
        pairs = [self._pair(*row) for row in zip(batch.tokens.tolist(), first_columns(batch), strict=True)]
        rows, seed = len(pairs), self.lessons.seed
        drawn = torch.full((rows,), seed)
        return {
            "x0_ids": [x0 for x0, _ in pairs],
            "x1_ids": [x1 for _, x1 in pairs],
            "times": diffusion_times(drawn, item, low=0.0, high=1 - EPSILON, antithetic=True),
            "seeds": philox.sample_seeds(batch.tokens, torch.full((rows,), batch.tokens.shape[1]), seed + number),
        }

    def _pair(self, tokens: list[int], first: int) -> tuple[list[int], list[int]]:
        """x_0 and x_1 of a row whose answer begins at `first`."""
        prompt, answer = tokens[:first], tokens[first:]
        answer = answer[: answer.index(self.end) + 1]
        return prompt + self.x0(answer)[: MAX_LENGTH - first], prompt + answer


def first_columns(batch: Batch) -> list[int]:
    """The column where each answer begins."""
    return batch.answer.long().argmax(1).tolist()


class LessonsTrainer(InOrder, EditFlowTrainer):
    """Edit Flows on the lessons in their order."""


def edit_model() -> tuple[nn.Module, object]:
    """A model of Edit Flows with the bundled model's weights, and its tokenizer."""
    # on CPUs the backward of torch's fused attention takes longer than all matrix products of a model this small
    backbone = get_model(model_name_or_path=str(SHIPPED), dtype="float32", attn_implementation="eager")
    return EditFlowModel.from_backbone(backbone), get_tokenizer(model_name_or_path=SHIPPED)


def trainer(model: nn.Module, tokenizer: object, folder: Path, settings: Settings, masks: int) -> LessonsTrainer:
    """The Trainer of an arm whose answers begin as `masks` masks; checkpoints go to `folder`."""
    config = EditFlowTrainerConfig(
        **arguments_of(folder, settings.seed, settings.steps, FORWARDS),
        loss_norm_type=settings.loss_norm_type,
        kappa_scheduler=settings.kappa,
        max_w=settings.max_w,
        time_epsilon=EPSILON,
    )
    optimizer = MuonAdamW(model, matrix_lr=settings.matrix_lr, other_lr=settings.other_lr)
    held_out = dict(steps=HELD_OUT_STEPS, batch_size=64, seed=HELD_OUT_SEED, masks=masks)
    return LessonsTrainer(
        config,
        model=model.train(),
        tokenizer=tokenizer,
        data_collator=operator.itemgetter(0),
        train_dataset=EditLessons(
            tokenizer, steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed, masks=masks
        ),
        eval_dataset=EditLessons(tokenizer, **held_out),
        optimizers=(optimizer, schedule(optimizer, settings.steps)),
    )


def prompts_of(tokenizer: object, questions: Sequence[str]) -> list[torch.Tensor]:
    """The questions as prompts, not padded."""
    tokens, kept = encode(tokenizer, questions)
    return [row[real == 1] for row, real in zip(tokens, kept, strict=True)]


def accuracy(
    model: nn.Module, tokenizer: object, asked: Sequence[Question], masks: int, tau: float, temperature: float
) -> dict[str, object]:
    """Exact answers of a model: the score as plain numbers, with `tau`, `temperature` and the mean `tokens`."""
    sampler, correct, forwards, tokens = EditFlowSampler(model.eval(), tokenizer), 0, 0, 0
    options = dict(mask_length=masks, tau=tau, temperature=temperature, time_epsilon=min(EPSILON, tau / 2))
    started = time.perf_counter()
    for first in range(0, len(asked), gauge.BATCH_SIZE):
        batch = asked[first : first + gauge.BATCH_SIZE]
        prompts = prompts_of(tokenizer, [question.text for question in batch])
        seeds = [HELD_OUT_SEED + first + number for number in range(len(batch))]
        made = sampler.sample(prompts, seed=seeds, return_dict=True, **options)
        replies = [row[len(prompt) :].tolist() for row, prompt in zip(made.sequences, prompts, strict=True)]
        correct += sum(q.read(decode(tokenizer, row)) == q.answer for q, row in zip(batch, replies, strict=True))
        forwards, tokens = forwards + sum(made.stats.row_forwards), tokens + made.stats.tokens
    seconds, count = time.perf_counter() - started, len(asked)
    score = Score(count, correct, forwards / count, tokens / count, seconds)
    return {"tau": tau, "temperature": temperature, "tokens": round(score.tokens, 2)} | score.row()


def lengths_over_time(model: nn.Module, tokenizer: object, masks: int, temperature: float) -> list[dict[str, object]]:
    """The lengths of a few answers at each time of sampling at which they change.

    Each is a dict of `question`, `reply`, and `times` and `lengths`, from the beginning to the time 1.
    """
    problems = [question.text for question in TASKS["problems"](SHOWN_PROBLEMS, HELD_OUT_SEED)]
    sampler, found = EditFlowSampler(model.eval(), tokenizer), []
    options = dict(mask_length=masks, tau=SHOWN_TAU, temperature=temperature)
    for number, question in enumerate([*problems, *SHOWN]):
        (prompt,), steps = prompts_of(tokenizer, [question]), []
        row = sampler.sample([prompt], seed=number, on_step=steps.append, **options)[0]
        times = [0.0, *(round((step.step + 1) * SHOWN_TAU, 4) for step in steps), 1.0]
        widths = [len(prompt) + masks, *(step.canvas.shape[1] for step in steps), len(row)]  # one row has no padding
        reply = decode(tokenizer, row[len(prompt) :].tolist())
        lengths = [width - len(prompt) for width in widths]
        found.append({"question": question, "reply": reply, "times": times, "lengths": lengths})
    return found


def learn(arm: str, folder: Path, settings: Settings) -> dict[str, object]:
    """Train an arm and save its model as `folder`/<arm>; returns its results."""
    torch.manual_seed(settings.seed)
    model, tokenizer = edit_model()
    masks = settings.mask_length if arm == "masks" else 0
    asked = TASKS["problems"](settings.questions, HELD_OUT_SEED)
    run = trainer(model, tokenizer, folder / f"{arm}-run", settings, masks)
    loss_before = run.evaluate()["eval_loss_per_token"]
    before = accuracy(model, tokenizer, asked[: gauge.BATCH_SIZE], masks, *FEWEST_STEPS)
    model.train()
    seconds = train(run)
    loss_after = run.evaluate()["eval_loss_per_token"]
    model.save_pretrained(folder / arm)
    save_tokenizer(tokenizer, folder / arm)
    after = [accuracy(model, tokenizer, asked, masks, *sampling) for sampling in SAMPLINGS]
    best = max(after, key=lambda score: score["correct"])
    lengths = lengths_over_time(model, tokenizer, masks, best["temperature"])
    losses = {"loss_before": loss_before, "loss_after": loss_after}
    return {"masks": masks, "seconds": seconds, **losses, "before": before, "after": after, "lengths": lengths}


def measure(folder: Path, settings: Settings, chosen: Sequence[str]) -> dict[str, dict[str, object]]:
    """Train the chosen arms; returns the results by name."""
    return {arm: once(folder / f"{arm}.json", learn, arm, folder, settings) for arm in ARMS if arm in chosen}


def cells(name: str, result: dict[str, object], score: dict[str, object]) -> list[str]:
    """A line of the table."""
    low, high = score["interval_95"]
    before = result["before"]
    measured_before = all(score[key] == before[key] for key in ("tau", "temperature"))
    return [
        f"{result['masks']} masks" if result["masks"] else name,
        f"{score['tau']:g}",
        f"{score['temperature']:g}",
        f"{before['accuracy']:.1%}" if measured_before else "-",
        f"{score['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{score['forwards']:.1f}",
        f"{score['tokens']:.1f}",
        f"{result['loss_before']:.3f}",
        f"{result['loss_after']:.3f}",
        f"{result['seconds'] / 60:.0f}" if result["seconds"] else "-",
    ]


def show(settings: Settings, results: dict[str, dict[str, object]]) -> None:
    """Print the table."""
    lines = [cells(name, result, score) for name, result in results.items() for score in result["after"]]
    report.print_table(f"exact answers of {settings.questions}, {settings.steps} steps of training", COLUMNS, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    how = dict(measure=measure, show=show, slug="modernbert-cpu", arms=ARMS)
    return resumable.main("edit_lessons", __doc__, Settings, arguments, **how)


if __name__ == "__main__":
    sys.exit(main())
