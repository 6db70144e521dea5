"""Write the card of a trained demo model, README.md and curve.png, beside its weights.

    python -m dllm.demo.training.train runs/demo
    python benchmarks/quality.py --model runs/demo/model
    python -m benchmarks.model_card runs/demo benchmarks/results/ROW.json

Nothing in the card is typed by hand: its scores are those rows', its curve is the run's own log, its ranges are those
that the problems are drawn from. The last two commands run on the machine that the model was trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, markdown, plot, quality, report
from benchmarks.sampling_tables import way_to_sample
from dllm.demo.answer import answer
from dllm.demo.shipped import SHIPPED, load
from dllm.demo.training import dialogues, gauge, lessons, problems
from dllm.demo.training.train import Settings
from dllm.exits import exit_code

TITLES = {
    "problems": "word problems: numbers never trained on",
    "new-phrasings": "word problems: neither numbers nor wording trained on",
    "small-talk": "small talk: lines trained on, letter for letter",
}
SCORES_HEAD = ("questions", "tokens per step", "exact answers", "95 % interval", "forward passes")
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [masked-diffusion, dllm]
---

# {title}

A masked-diffusion language model of {parameters:.1f} million parameters, trained from nothing: {kind} with {layers}
layers of width {width}, all of which see the whole canvas, and {vocabulary:,} tokens of byte-level BPE, one for each
number from 0 to {largest}. It is made to measure with: small enough for any machine, and right or wrong beyond dispute.
It is no assistant.

```python
from dllm.demo.answer import answer
from dllm.demo.shipped import {loader}

question = "{question}"
replies, stats = answer(*{loader}({source}), [question], steps=64, block_length=64, remasking="low_confidence")
```

> {reply}

## What it was taught

- Word problems in two stages, worked out step by step: {rates} things an hour, {hours} hours a stage, {people} people,
  {activities} activities, {phrasings} phrasings. Beyond these ranges it guesses.
- One step of such a problem: "What is 12 * 4?", "48 + 24 = ?", "8 - 4".
- The next line of short English dialogues, {talk} of them: an answer of that kind, seldom the right one (see below).

Conversations have BERT-chat's template and at most {max_length} tokens, the answer included.

## Scores

Temperature 0, {gen_length} tokens in blocks of {block_length}, `low_confidence`; 95 % confidence intervals (Wilson).

{scores}

"Numbers never trained on": {held_out:.0%} of all combinations of a problem's four numbers occur in no training problem,
whatever its wording and whichever stage comes first. Small talk: drawn with seed {asked_seed} from what it was taught.
Asked again by `python -m dllm.demo.training.gauge --task problems --tokens-per-step 1`.

Which lessons to add, and that training went on for its last 300 steps, was decided while watching held-out problems,
some of them among those scored here; so the scores on word problems are somewhat favourable.
{history}
## Training

- Data: word problems made by a program ({share:.0%} of all conversations); half of the others ask for a step of one,
  half are lines of chatterbot-corpus (BSD license; {subjects}).
  Some follow earlier turns. From step {drill_from:,} on as many sums besides, and later problems cut off behind an
  equals sign (`dllm/demo/training/lessons.py`).
- Objective: masked diffusion with uniform weights. Every token of an answer, and of the end-of-answer tokens behind it,
  is masked with probability t ~ U(0, 1); the loss is the cross-entropy of the masked tokens, summed and divided by the
  number of all that might have been masked.
- {steps:,} steps of {batch_size} conversations, Muon (learning rate {matrix_lr:g}) and AdamW ({other_lr:g}), bfloat16
  arithmetic, seed {seed}: {minutes:.0f} minutes on {machine}.
- `python -m dllm.demo.training.train runs/demo{options}` with torch {torch} and transformers {transformers}.

![Loss and exact answers during training](curve.png)
"""

# a paragraph for the weights in dllm/demo/model only
HISTORY = """
The lessons were added to one run as it went. The loop of that run was written out by hand: `dllm.demo.training.train`
has moved onto `MDLMTrainer` since. It holds all the lessons, the same optimizer and rates, draws other masks, and
divides the loss by the tokens that might have been masked instead of those that were, about half of them, which neither
optimizer minds. It has been tried for 600 steps (`benchmarks/LOG.md`), but not run to its end.
"""

OF_ARCHITECTURE = {
    "modernbert": {
        "title": "The model that dllm ships",
        "kind": "ModernBERT",
        "loader": "load_shipped",
        "source": "",
    },
    "llama": {
        "title": "A diffusion model of a causal architecture",
        "kind": "Llama, made bidirectional by `dllm.models.bidirectional`,",
        "loader": "load",
        "source": '"runs/demo/model"',
    },
}

OF_DATA = {
    "rates": f"{problems.RATES[0]} to {problems.RATES[-1]}",
    "hours": f"{problems.HOURS[0]} to {problems.HOURS[-1]}",
    "largest": problems.LARGEST_NUMBER,
    "people": len(problems.PEOPLE),
    "activities": len(problems.ACTIVITIES),
    "phrasings": len(problems.PHRASINGS),
    "held_out": problems.HELD_OUT_SHARE,
    "subjects": ", ".join(dialogues.SMALL_TALK),
    "max_length": lessons.MAX_LENGTH,
    "share": lessons.PROBLEM_SHARE,
}


def write_card(run: Path, rows: Sequence[dict]) -> Path:
    """Draw the curve and write the card; returns its path.

    Args:
        run: the folder of a finished run of `dllm.demo.training.train`.
        rows: of kind "quality", measured on that run's model with the same settings.

    Raises:
        FileNotFoundError: the run has not finished.
        ValueError: a row is of another kind or another model, or the rows' settings differ.
    """
    folder = run / "model"
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(f"expected a finished run, with a model in {folder}; continue its training")
    for row in rows:
        if row["kind"] != "quality" or row["settings"]["weights"] != quality.digest(folder):
            raise ValueError(f"expected rows of benchmarks/quality.py --model {folder}, got one of {row['command']}")
        if row["settings"] != rows[0]["settings"]:
            raise ValueError(f"expected rows of one setting, got {rows[0]['settings']} and {row['settings']}")
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    log = [entry for entry in history if "loss" in entry]
    plot.training_curve(log, folder / "curve.png")
    card = folder / "README.md"
    facts = of_run(settings) | of_model(folder) | OF_DATA | of_rows(rows) | {"minutes": log[-1]["seconds"] / 60}
    card.write_text(CARD.format(**facts), encoding="utf-8")
    return card


def of_run(settings: dict[str, object]) -> dict[str, object]:
    """Fields of the card from a run's settings; those that differ from the defaults also as options of the command."""
    usual = asdict(Settings())
    settings = usual | settings
    options = (f" --{name.replace('_', '-')} {value}" for name, value in settings.items() if value != usual[name])
    return {
        **settings,
        **OF_ARCHITECTURE[settings["architecture"]],
        "options": "".join(options),
        "drill_from": math.ceil(lessons.DRILL_FROM * settings["steps"] / lessons.STEPS),
    }


def of_model(folder: Path) -> dict[str, object]:
    """Fields of the card from the model: its size, and its answer to an example problem."""
    model, tokenizer = load(folder)
    example = problems.make_problem(problems.CARD, problems.PHRASINGS[0], problems.PEOPLE[0], problems.ACTIVITIES[0])
    length = gauge.GEN_LENGTH
    (reply,), _ = answer(
        model, tokenizer, [example.question], steps=length, block_length=length, remasking="low_confidence"
    )
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "vocabulary": len(tokenizer),
        "question": example.question,
        "reply": reply,
        "talk": len(dialogues.small_talk()),
        "history": HISTORY if quality.digest(folder) == quality.digest(SHIPPED) else "",
    }


def of_rows(rows: Sequence[dict]) -> dict[str, object]:
    """Fields of the card from quality rows: the table of scores, and how they were measured."""
    lines = [
        [
            f"{result['questions']} {TITLES[result['task']]}",
            way_to_sample(result),
            f"{result['accuracy']:.1%}",
            "{:.1%} to {:.1%}".format(*result["interval_95"]),
            f"{result['forwards']:.0f}",
        ]
        for row in rows
        for result in row["results"]
    ]
    row = rows[0]
    return {
        "scores": markdown.table(SCORES_HEAD, lines),
        "gen_length": row["settings"]["gen_length"],
        "block_length": row["settings"]["block_length"],
        "asked_seed": row["settings"]["seed"],
        "machine": machine.short_name(row["machine"]),
        "torch": row["versions"]["torch"],
        "transformers": row["versions"]["transformers"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the card; 2 where a file is missing or a row does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("rows", type=Path, nargs="+", help="JSON rows of benchmarks/quality.py")
    options = parser.parse_args(arguments)
    try:
        print(write_card(options.run, [report.read_row(path) for path in options.rows]))
    except (OSError, ValueError) as error:
        print(f"benchmarks.model_card: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("model_card", main))
