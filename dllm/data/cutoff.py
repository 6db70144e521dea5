"""DreamSFTCollator: cuts answers to random lengths, so that padding does not teach one length of answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from dllm.data.chat import IGNORE
from dllm.data.collators import generator_of
from dllm.data.lengths import PER_TOKEN


@dataclass
class DreamSFTCollator(transformers.DataCollatorForSeq2Seq):
    """Pads conversations on the right, after cutting their answers to a length that is drawn for each batch.

    Otherwise the padding behind short answers, which is trained as the end of text, outweighs the answers. Where
    padding is trained (`label_pad_token_id=tokenizer.pad_token_id`) it is attended to as well: Dream's rows of padding
    would else see nothing. A draw depends on the batch's tokens alone, not on the process or on resumption.

    Args:
        perbatch_cutoff: draw a sample of the batch; longer answers are cut to the length of its answer, then padded.
        resp_cutoff_ratio: without `perbatch_cutoff`, the probability that a padded batch loses its last c columns,
            c = 1 ... (shortest answer - 1).
        others: of transformers' DataCollatorForSeq2Seq.

    Samples have `input_ids`, `labels` and `prompt_len`, the number of tokens before the answer, which is never cut.

    Raises:
        ValueError: `resp_cutoff_ratio` is outside [0, 1], or is not 0 beside `perbatch_cutoff`; a sample without
            `prompt_len`, with one that is no whole number of at least 0, or without an answer behind it.

    Source: dLLM 0.1, whose name and arguments these are; Dream-Coder (arXiv:2509.01142).

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> collate = DreamSFTCollator(tokenizer, label_pad_token_id=tokenizer.pad_token_id)
        >>> samples = [{"input_ids": [9] * n, "labels": [-100] * 2 + [9] * (n - 2), "prompt_len": 2} for n in (5, 8)]
        >>> collate(samples)["input_ids"].shape[1] in (5, 8)
        True
    """

    perbatch_cutoff: bool = True
    resp_cutoff_ratio: float = 0.0

    def __post_init__(self):
        check_cutoff(self.perbatch_cutoff, self.resp_cutoff_ratio)

    def __call__(self, samples: Sequence[Mapping[str, Any]], return_tensors: str | None = None) -> dict[str, Any]:
        answers = [_answer_length(sample, number) for number, sample in enumerate(samples)]
        draw = generator_of(torch.tensor([token for sample in samples for token in sample["input_ids"]]))
        if self.perbatch_cutoff:
            samples = cut_answers(samples, draw.choice(answers))
        samples = [{name: value for name, value in sample.items() if name != "prompt_len"} for sample in samples]
        batch = dict(super().__call__(samples, return_tensors))
        if not self.perbatch_cutoff and min(answers) > 1 and draw.random() < self.resp_cutoff_ratio:
            kept = batch["input_ids"].shape[1] - draw.randint(1, min(answers) - 1)
            batch = {name: value[:, :kept] if name in PER_TOKEN else value for name, value in batch.items()}
        if "attention_mask" in batch and self.label_pad_token_id != IGNORE:
            batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return batch


def check_cutoff(perbatch_cutoff: bool, resp_cutoff_ratio: float) -> None:
    """Check the arguments of :class:`DreamSFTCollator`.

    Raises:
        ValueError: the ratio is outside [0, 1], or is not 0 beside `perbatch_cutoff`.
    """
    if not 0 <= resp_cutoff_ratio <= 1:
        raise ValueError(f"resp_cutoff_ratio must lie in [0, 1], got {resp_cutoff_ratio}")
    if perbatch_cutoff and resp_cutoff_ratio:
        raise ValueError(f"resp_cutoff_ratio must be 0 beside perbatch_cutoff, got {resp_cutoff_ratio}")


def cut_answers(samples: Sequence[Mapping[str, Any]], longest: int) -> list[dict[str, Any]]:
    """Samples whose answers have at most `longest` tokens.

    Example:
        >>> cut_answers([{"input_ids": [5, 6, 7, 8], "prompt_len": 1}], longest=2)
        [{'input_ids': [5, 6, 7], 'prompt_len': 1}]
    """
    return [
        {
            name: value[: sample["prompt_len"] + longest] if name in PER_TOKEN else value
            for name, value in sample.items()
        }
        for sample in samples
    ]


def _answer_length(sample: Mapping[str, Any], number: int) -> int:
    if "prompt_len" not in sample:
        raise ValueError(f"sample {number} of a batch must have prompt_len, got {', '.join(sample)}")
    prompt = sample["prompt_len"]
    if isinstance(prompt, bool) or not hasattr(prompt, "__index__") or prompt < 0:
        raise ValueError(
            f"prompt_len of sample {number} of a batch must be a whole number of at least 0, got {prompt!r}"
        )
    length = len(sample["input_ids"]) - prompt
    if length < 1:
        raise ValueError(
            f"sample {number} of a batch must have an answer behind its prompt of {prompt} tokens, got "
            f"{len(sample['input_ids'])} tokens in all"
        )
    return length
