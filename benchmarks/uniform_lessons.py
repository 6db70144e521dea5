"""What a tiny DiffusionGemma learns from nothing under uniform noise: exact answers to the gauge's problems.

    OMP_NUM_THREADS=1 python -m benchmarks.uniform_lessons runs/uniform

A model of DiffusionGemma's class, hundreds of times smaller in each dimension, learns the bundled model's lessons by
:class:`~dllm.core.trainers.DiffusionGemmaTrainer`, with the encoder's loss and self-conditioning, in canvases of 32
tokens. It is measured before and after: the losses on lessons of another seed, and exact answers to held-out problems
by :class:`~dllm.core.samplers.DiffusionGemmaSampler` (before: one batch of problems, one setting).

The optimizer, its schedule and the lessons are those of the bundled model (`dllm.demo.training`), without the tails:
the encoder learns each solution from left to right anyway. Sums begin after 72 % of the steps. The same command resumes
an interrupted run. The last line is JSON; a row goes to the results.
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
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks import report, resumable
from benchmarks.a2d_lessons import HELD_OUT_SEED, HELD_OUT_STEPS, InOrder, arguments_of, train
from benchmarks.resumable import once
from dllm.core.samplers import DiffusionGemmaSampler
from dllm.core.trainers import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from dllm.core.trainers.batches import IGNORE
from dllm.demo.answer import decode, encode
from dllm.demo.training import gauge
from dllm.demo.training.curriculum import FORWARDS, Curriculum
from dllm.demo.training.lessons import MAX_LENGTH, Lessons, vocabulary
from dllm.demo.training.optimizer import MuonAdamW, schedule
from dllm.demo.training.questions import TASKS, Question
from dllm.demo.training.score import Score
from dllm.demo.training.train import save_tokenizer

# Steps of a canvas and the entropy bound; the first is the model's own default.
SAMPLINGS = ((48, 0.1), (16, 0.1), (48, 0.02), (48, 1.0))
COLUMNS = ("steps", "entropy bound", "exact before", "exact after", "95 %", "forwards", "loss before", "loss after",
           "minutes")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run; a resumed run must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 2900
    batch_size: int = 64
    hidden: int = 128
    layers: int = 6
    canvas: int = 32
    questions: int = 200
    self_conditioning: float = 0.5
    encoder_loss_weight: float = 1.0
    matrix_lr: float = 0.02
    other_lr: float = 0.003
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "layers", "canvas", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.hidden < 32 or self.hidden % 32:
            raise ValueError(f"expected hidden as a multiple of 32, got {self.hidden}")
        for name in ("matrix_lr", "other_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"expected a finite {name} above 0, got {getattr(self, name)}")


class UniformLessons(Dataset):
    """The lessons as samples of whole batches, an item for each forward pass; an answer ends with its end token.

    Args:
        tokenizer: of the lessons.
        steps: of the run.
        batch_size: conversations per step, without the sums.
        seed: of the lessons.

    Example:
        >>> item = UniformLessons(vocabulary(), steps=9, batch_size=4, seed=0)[0]
        >>> sorted(item)
        ['input_ids', 'labels', 'seeds', 'times']
    """

    def __init__(self, tokenizer: object, *, steps: int, batch_size: int, seed: int):
        self.end = tokenizer.eos_token_id
        # of a run of 2 x steps the first half has no tails, and sums only in its last 28 %
        self.lessons = Curriculum(Lessons(tokenizer, batch_size, seed, steps=2 * steps), steps=steps, processes=1)

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        lesson = self.lessons[item]
        answer = lesson["labels"] != IGNORE
        ends = answer & (lesson["input_ids"] == self.end)
        behind = ends.cumsum(1) - ends.long() > 0  # the first end token of an answer is its last token
        return lesson | {"labels": lesson["labels"].masked_fill(behind, IGNORE)}


class LessonsTrainer(InOrder, DiffusionGemmaTrainer):
    """Uniform diffusion on the lessons in their order."""


def new_model(tokenizer: object, settings: Settings) -> nn.Module:
    """A DiffusionGemma with random weights: two experts, both of which every token visits, every third layer full."""
    heads = settings.hidden // 32
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=2 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_global_key_value_heads=heads,
        head_dim=32,
        global_head_dim=32,
        sliding_window=2 * MAX_LENGTH,
        layer_types=[("sliding_attention", "full_attention")[layer % 3 == 2] for layer in range(settings.layers)],
        num_experts=2,
        top_k_experts=2,
        moe_intermediate_size=settings.hidden // 4,
        max_position_embeddings=2 * MAX_LENGTH,
        use_bidirectional_attention="vision",
        pad_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    # there are no images; older versions of transformers want this part nevertheless
    vision = transformers.AutoConfig.for_model(
        "gemma4_vision", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )
    no_token = dict(image_token_id=len(tokenizer), boi_token_id=len(tokenizer), eoi_token_id=len(tokenizer))
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=settings.canvas, **no_token
    )
    # on CPUs the backward of torch's fused attention takes longer than all matrix products of a model this small
    config._attn_implementation = "eager"
    return transformers.DiffusionGemmaForBlockDiffusion(config)


def trainer(model: nn.Module, tokenizer: object, folder: Path, settings: Settings) -> LessonsTrainer:
    """The Trainer of the run; checkpoints go to `folder`."""
    config = DiffusionGemmaTrainerConfig(
        **arguments_of(folder, settings.seed, settings.steps, FORWARDS),
        self_conditioning=settings.self_conditioning,
        encoder_loss_weight=settings.encoder_loss_weight,
        freeze_router=False,
    )
    optimizer = MuonAdamW(model, matrix_lr=settings.matrix_lr, other_lr=settings.other_lr)
    held_out = dict(steps=HELD_OUT_STEPS, batch_size=64, seed=HELD_OUT_SEED)
    return LessonsTrainer(
        config,
        model=model.train(),
        tokenizer=tokenizer,
        data_collator=operator.itemgetter(0),
        train_dataset=UniformLessons(
            tokenizer, steps=settings.steps, batch_size=settings.batch_size, seed=settings.seed
        ),
        eval_dataset=UniformLessons(tokenizer, **held_out),
        optimizers=(optimizer, schedule(optimizer, settings.steps)),
    )


def accuracy(
    model: nn.Module, tokenizer: object, asked: Sequence[Question], steps: int, entropy_bound: float
) -> dict[str, object]:
    """Exact answers of a model: the score as plain numbers, with the steps and the bound."""
    sampler, correct, forwards, tokens = DiffusionGemmaSampler(model.eval(), tokenizer), 0, 0, 0
    options = dict(max_new_tokens=gauge.GEN_LENGTH, max_denoising_steps=steps, entropy_bound=entropy_bound)
    started = time.perf_counter()
    for first in range(0, len(asked), gauge.BATCH_SIZE):
        batch = asked[first : first + gauge.BATCH_SIZE]
        padded, real = encode(tokenizer, [question.text for question in batch])
        prompts = [row[kept == 1] for row, kept in zip(padded, real, strict=True)]
        seeds = [HELD_OUT_SEED + first + number for number in range(len(batch))]
        made = sampler.sample(prompts, seed=seeds, return_dict=True, keep_histories=False, **options)
        replies = [row[len(prompt) :].tolist() for row, prompt in zip(made.sequences, prompts, strict=True)]
        correct += sum(q.read(decode(tokenizer, row)) == q.answer for q, row in zip(batch, replies, strict=True))
        forwards, tokens = forwards + sum(made.stats.row_forwards), tokens + made.stats.useful_tokens
    seconds, count = time.perf_counter() - started, len(asked)
    score = Score(count, correct, forwards / count, tokens / count, seconds)
    return {"steps": steps, "entropy_bound": entropy_bound} | score.row()


def losses(run: LessonsTrainer) -> dict[str, float]:
    """The losses on lessons of another seed: of both terms together, of canvases, and of the encoder."""
    found = run.evaluate()
    return {name: found[f"eval_{name}"] for name in ("loss", "nll", "encoder_nll") if f"eval_{name}" in found}


def learn(folder: Path, settings: Settings) -> dict[str, object]:
    """Train the model and save it as `folder`/model; returns the results."""
    torch.manual_seed(settings.seed)
    tokenizer = vocabulary()
    model = new_model(tokenizer, settings)
    asked = TASKS["problems"](settings.questions, HELD_OUT_SEED)
    run = trainer(model, tokenizer, folder / "run", settings)
    before = {"losses": losses(run), "score": accuracy(model, tokenizer, asked[: gauge.BATCH_SIZE], *SAMPLINGS[0])}
    model.train()
    seconds = train(run)
    after = {"losses": losses(run)}
    model.save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    after["scores"] = [accuracy(model, tokenizer, asked, *sampling) for sampling in SAMPLINGS]
    parameters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"parameters": parameters, "seconds": seconds, "before": before, "after": after}


def cells(result: dict[str, object], score: dict[str, object]) -> list[str]:
    """A line of the table."""
    (low, high), before = score["interval_95"], result["before"]
    measured_before = all(score[key] == before["score"][key] for key in ("steps", "entropy_bound"))
    return [
        str(score["steps"]),
        f"{score['entropy_bound']:g}",
        f"{before['score']['accuracy']:.1%}" if measured_before else "-",
        f"{score['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{score['forwards']:.1f}",
        f"{before['losses']['loss']:.3f}",
        f"{result['after']['losses']['loss']:.3f}",
        f"{result['seconds'] / 60:.0f}" if result["seconds"] else "-",
    ]


def measure(folder: Path, settings: Settings) -> dict[str, object]:
    """The results of the run in this folder, trained if they are not there."""
    return once(folder / "results.json", learn, folder, settings)


def show(settings: Settings, results: dict[str, object]) -> None:
    """Print the table."""
    lines = [cells(results, score) for score in results["after"]["scores"]]
    report.print_table(f"exact answers of {settings.questions}, {settings.steps} steps of training", COLUMNS, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    how = dict(measure=measure, show=show, slug="diffusion_gemma-cpu")
    return resumable.main("uniform_lessons", __doc__, Settings, arguments, **how)


if __name__ == "__main__":
    sys.exit(main())
