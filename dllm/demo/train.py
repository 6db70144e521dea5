"""Train the shipped model from nothing: about an hour on two CPU cores.

    python -m dllm.demo.train runs/demo

An interrupted run is continued by the same command, with the same batches and the same masks as if it had never
stopped. `runs/demo` then holds the checkpoint, `log.jsonl` and, at the end, the folder `model`.

Objective (masked diffusion with uniform weights): of each answer of N tokens, every token is masked with probability
t ~ U(0, 1), t spread evenly over the rows of a batch; later, in some rows, all tokens behind an equals sign. The loss
is the mean cross-entropy of the masked tokens. The layers' matrices are trained by Muon (Jordan et al. 2024), under
which the model looks at the question after 200 steps, where under AdamW it takes many more; embeddings, norms and
biases by AdamW.

On CPUs each core works on its own share of a batch: for a model of this size that is a third faster than all cores on
every operation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM

from dllm.demo import gauge
from dllm.demo.lessons import MAX_LENGTH, Batch, Lessons, vocabulary

WARMUP_STEPS, HIGH_STEPS, AGAIN = 100, 500, 0.1
LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 25, 100, 600
EVALUATION_PROBLEMS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is made of; a run that is continued must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 3900
    batch_size: int = 64
    seed: int = 0
    matrix_lr: float = 0.02
    other_lr: float = 0.003

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("matrix_lr", "other_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"expected a finite {name} above 0, got {getattr(self, name)}")


def new_model(tokenizer: object) -> ModernBertForMaskedLM:
    """A ModernBERT of 2.6 million parameters, all of whose layers see the whole canvas; random weights."""
    end = tokenizer.eos_token_id
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        global_attn_every_n_layers=1,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        cls_token_id=end,
        sep_token_id=end,
        # on CPUs the backward of torch's fused attention takes longer than all matrix products of such a model
        attn_implementation="eager",
    )
    return ModernBertForMaskedLM(config)


def masked(batch: Batch, mask_id: int, seed: int) -> tuple[Tensor, Tensor]:
    """The batch with masks, int64 [B, L], and where they are, bool [B, L]; depends on the batch and the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(batch.tokens)
    t = (torch.rand((), generator=generator) + torch.arange(rows) / rows) % 1
    drawn = torch.rand(batch.tokens.shape, generator=generator) < t[:, None]
    behind = torch.arange(batch.tokens.shape[1]) >= batch.tail[:, None]
    chosen = torch.where(batch.tail[:, None] >= 0, behind, drawn) & batch.answer
    return batch.tokens.masked_fill(chosen, mask_id), chosen


def summed_loss(model: ModernBertForMaskedLM, canvas: Tensor, chosen: Tensor, tokens: Tensor) -> Tensor:
    """Sum of the cross-entropies of the chosen tokens; only their rows meet the vocabulary."""
    with torch.autocast(canvas.device.type, torch.bfloat16):
        hidden = model.model(input_ids=canvas).last_hidden_state[chosen]
        logits = model.decoder(model.head(hidden))
    return F.cross_entropy(logits.float(), tokens[chosen], reduction="sum")


class Workers:
    """Threads that each take a share of the rows through the model; one on a GPU, one for each core elsewhere."""

    def __init__(self, model: ModernBertForMaskedLM):
        self.model = model
        self.parameters = list(model.parameters())
        self.count = torch.get_num_threads() if model.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Give every parameter its gradient of the mean loss, and return that loss; 0 where no token is chosen.

        Args:
            batches: (canvas, chosen, tokens), each [B, L]; the mean is over all of them.
        """
        shares = [share for batch in batches for share in self._shares(batch)]
        losses, gradients = zip(*self.pool.map(self._share, shares), strict=True)
        chosen_tokens = sum(chosen.sum() for _, chosen, _ in batches).clamp(min=1)
        for parameter, *parts in zip(self.parameters, *gradients, strict=True):
            parameter.grad = torch.stack(parts).sum(0) / chosen_tokens
        return sum(losses) / chosen_tokens

    def _shares(self, batch: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Tensor, ...]]:
        count = min(self.count, len(batch[0]))
        return [tuple(x[first::count] for x in batch) for first in range(count)]

    def _share(self, share: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = summed_loss(self.model, *share)
        return loss.detach(), torch.autograd.grad(loss, self.parameters)


class Optimizer:
    """Muon for the matrices of the layers, AdamW for all else, on one schedule."""

    def __init__(self, model: nn.Module, settings: Settings):
        self.steps, self.rates = settings.steps, (settings.matrix_lr, settings.other_lr)
        matrices = {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
        others = [p for name, p in model.named_parameters() if name not in matrices]
        self.parts = (
            torch.optim.Muon(matrices.values(), lr=settings.matrix_lr, weight_decay=0.01),
            torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, number: int) -> None:
        """Update the parameters with the learning rates of step `number`."""
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * self._share(number)
            part.step()

    def _share(self, number: int) -> float:
        """Of the highest learning rate: all until the model has found the question (some hundred steps), then so little
        that it can learn its sums, at last none; and once more from a tenth to none, for the sums."""
        first = self.steps * 12 // 13
        if number < first:
            return min((number + 1) / WARMUP_STEPS, (1 - number / first) / (1 + number / HIGH_STEPS))
        return AGAIN * (1 - (number - first) / (self.steps - first))

    def state_dict(self) -> list[dict]:
        """What `load_state_dict` takes."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        """Continue where `state_dict` was called."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Run:
    """A training run in a folder.

    Args:
        folder: where the run keeps what it needs to be continued; made if missing.
        settings: see `Settings`.
        device: where to train.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: Settings, device: torch.device):
        self.folder, self.settings, self.device = folder, settings, device
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.tokenizer = vocabulary()
        self.lessons = Lessons(self.tokenizer, settings.batch_size, settings.seed)
        self.model = new_model(self.tokenizer).to(device)
        self.workers = Workers(self.model)
        self.optimizer = Optimizer(self.model, settings)
        self.step, self.seconds = 0, 0.0
        self._resume()

    def train(self) -> None:
        """Train to the last step, then save the model in half precision."""
        while self.step < self.settings.steps:
            self._section(min(self.step + LOG_EVERY, self.settings.steps))
            if self.step % SAVE_EVERY == 0:
                self._save_checkpoint()
        self._save_checkpoint()
        self.model.half().save_pretrained(self.folder / "model")
        save_tokenizer(self.tokenizer, self.folder / "model")
        print(f"model: {self.folder / 'model'}")

    def _section(self, end: int) -> None:
        """The steps up to `end`, and their row in the log."""
        started, total = time.monotonic(), 0.0
        self.model.train()
        steps = range(self.step, end)
        for number in steps:
            total += self.workers.backward([self._masked(batch, number) for batch in self.lessons[number]])
            self.optimizer.step(number)
        self.step, loss = end, float(total) / len(steps)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} between steps {steps[0]} and {end}; a lower rate may help")
        row = {"step": end, "loss": round(loss, 4)}
        if end % EVALUATE_EVERY == 0 or end == self.settings.steps:
            row["accuracy"] = self._accuracy()
        self.seconds += time.monotonic() - started
        self._log(row | {"seconds": round(self.seconds, 1)})

    def _masked(self, batch: Batch, number: int) -> tuple[Tensor, ...]:
        canvas, chosen = masked(batch, self.tokenizer.mask_token_id, self.settings.seed + number)
        return tuple(x.to(self.device) for x in (canvas, chosen, batch.tokens))

    def _accuracy(self) -> float:
        """Exact answers among a few held-out problems, one token per step."""
        self.model.eval()
        return gauge.measure(self.model, self.tokenizer, questions=EVALUATION_PROBLEMS, seed=1).accuracy

    def _log(self, row: dict) -> None:
        print(row, flush=True)
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def _log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def _save_checkpoint(self) -> None:
        """All that a continued run needs; a killed run leaves the old checkpoint or the new one, never half of one."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = self.folder / "checkpoint.unfinished"
        torch.save(state, unfinished)
        os.replace(unfinished, self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            self._log_path.unlink(missing_ok=True)
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise ValueError(
                f"expected the settings of the run in {self.folder}, {state['settings']}, got {asdict(self.settings)}; "
                "another folder starts another run"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        rows = [json.loads(line) for line in self._log_path.read_text(encoding="utf-8").splitlines()]
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.step]
        self._log_path.write_text("".join(kept), encoding="utf-8")
        print(f"continued after step {self.step}")


def save_tokenizer(tokenizer: object, folder: Path) -> None:
    """Save it so that transformers 4.57 reads it, too: version 5 writes a class name that 4.57 does not know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train by the command line's settings."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description="Train the model that dllm ships, or continue a run.")
    parser.add_argument("folder", type=Path, help="where the run lives; a run that is there is continued")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--matrix-lr", type=float, default=defaults.matrix_lr, help="learning rate of Muon")
    parser.add_argument("--other-lr", type=float, default=defaults.other_lr, help="learning rate of AdamW")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args(arguments))
    folder, device = options.pop("folder"), options.pop("device")
    try:
        run = Run(folder, Settings(**options), device)
    except ValueError as error:
        parser.error(str(error))
    run.train()


if __name__ == "__main__":
    main()
