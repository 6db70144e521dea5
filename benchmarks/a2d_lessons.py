"""What causal pre-training is worth to a diffusion model: equal steps of diffusion from converted and random weights.

    OMP_NUM_THREADS=1 python -m benchmarks.a2d_lessons runs/a2d --causal-steps 200 --steps 120 --batch-size 32

A model of Qwen3's architecture in the size of the bundled one learns the bundled model's lessons causally, token by
token. `python -m dllm.pipelines.a2d.convert` makes a diffusion model of it, which MDLMTrainer then trains on the
lessons. Another one, with random weights, gets the same steps. Both are measured before and after: the loss on lessons
of another seed, nats per token that may be masked, and the gauge. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.demo.training import gauge
from dllm.demo.training.curriculum import FORWARDS, Curriculum
from dllm.demo.training.lessons import MAX_LENGTH, Lessons, vocabulary
from dllm.demo.training.optimizer import MuonAdamW, schedule
from dllm.demo.training.train import save_tokenizer
from dllm.exits import exit_code
from dllm.models import get_model, get_tokenizer
from dllm.pipelines.a2d.convert import convert

HELD_OUT_SEED, HELD_OUT_STEPS = 1, 4


class LessonTrainer(MDLMTrainer):
    """MDLMTrainer on lessons in their order."""

    def _get_train_sampler(self, *_: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def causal_model(tokenizer: object) -> nn.Module:
    """A causal model of Qwen3's architecture with random weights, 2.6 million parameters."""
    size = dict(hidden_size=192, intermediate_size=384, num_hidden_layers=6, num_attention_heads=6, head_dim=32)
    ends = dict(pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    size |= dict(num_key_value_heads=6, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH)
    config = transformers.Qwen3Config(**size, **ends, tie_word_embeddings=True, attn_implementation="eager")
    return transformers.Qwen3ForCausalLM(config)


def pretrain(model: nn.Module, lessons: Lessons, steps: int) -> float:
    """Train causally on the answers of the lessons; the mean loss of the last ten steps, nats per token."""
    optimizer = MuonAdamW(model, matrix_lr=0.02, other_lr=0.003)
    rates, losses = schedule(optimizer, steps), []
    for number in range(steps):
        batches = lessons[number]
        count = sum(int(batch.answer[:, 1:].sum()) for batch in batches)
        losses.append(0.0)
        for batch in batches:
            logits = model(input_ids=batch.tokens).logits[:, :-1]
            labels = batch.tokens.where(batch.answer, -100)[:, 1:]
            loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / count
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    return sum(losses[-10:]) / len(losses[-10:])


def diffuse(model: nn.Module, tokenizer: object, folder: Path, steps: int, batch_size: int) -> dict[str, float]:
    """Train by masked diffusion; the held-out loss and the accuracy before and after."""
    lessons = Lessons(tokenizer, batch_size, 0, steps=steps)
    held_out = Curriculum(Lessons(tokenizer, 64, HELD_OUT_SEED), steps=HELD_OUT_STEPS, processes=1)
    config = MDLMConfig(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=1,  # an item is a whole batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=FORWARDS,
        remove_unused_columns=False,
        loss_weight_type="uniform",
        max_grad_norm=0.0,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
    )
    optimizer = MuonAdamW(model, matrix_lr=0.02, other_lr=0.003)
    trainer = LessonTrainer(
        config,
        model=model.train(),
        tokenizer=tokenizer,
        train_dataset=Curriculum(lessons, steps=steps, processes=1),
        eval_dataset=held_out,
        data_collator=operator.itemgetter(0),
        optimizers=(optimizer, schedule(optimizer, steps)),
    )
    before = trainer.evaluate()["eval_loss"], accuracy(model, tokenizer)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    after = trainer.evaluate()["eval_loss"], accuracy(model, tokenizer)
    names = ("loss before", "accuracy before", "loss after", "accuracy after")
    return dict(zip(names, (*before, *after), strict=True)) | {"seconds": seconds}


def accuracy(model: nn.Module, tokenizer: object) -> float:
    """Exact answers among 50 held-out problems, 4 tokens per step."""
    return gauge.measure(model.eval(), tokenizer, questions=50, tokens_per_step=4, seed=1).accuracy


def run(options: argparse.Namespace) -> None:
    """Pre-train, convert, train both models, print."""
    folder = options.folder
    torch.manual_seed(0)
    tokenizer = vocabulary()
    causal, started = causal_model(tokenizer), time.perf_counter()
    random = {name: weight.clone() for name, weight in causal.state_dict().items()}
    lessons = Lessons(tokenizer, options.batch_size, 0, steps=options.causal_steps)
    loss, spent = pretrain(causal.train(), lessons, options.causal_steps), time.perf_counter() - started
    print(f"causal: {options.causal_steps} steps, {spent:.0f} s, loss {loss:.3f}", flush=True)
    causal.save_pretrained(folder / "causal")
    save_tokenizer(tokenizer, folder / "causal")
    convert(str(folder / "causal"), folder / "a2d")
    found = {}
    for arm in ("converted", "random"):
        options_of = dict(model_name_or_path=str(folder / "a2d"), dtype="float32", attn_implementation="eager")
        model = get_model(**options_of)
        if arm == "random":
            model.load_state_dict(random)
        own = get_tokenizer(model_name_or_path=str(folder / "a2d"))
        found[arm] = diffuse(model, own, folder / arm, options.steps, options.batch_size)
        row = ", ".join(f"{name} {value:.3f}" for name, value in found[arm].items())
        print(f"{arm}: {options.steps} steps, {row}", flush=True)
    settings = dict(causal_steps=options.causal_steps, steps=options.steps, batch_size=options.batch_size)
    print(json.dumps(settings | {"causal_loss": loss, "causal_seconds": spent} | found))


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="where the models go; must not hold any")
    parser.add_argument("--causal-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=60, help="of diffusion, for each of both models")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    return exit_code("a2d_lessons", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
