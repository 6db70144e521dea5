"""The model card's sampling loop in plain PyTorch: the judge of ``dllm.fast``.

Written to be read, not to be fast. Every row is processed alone and unpadded, every step runs the model on the whole
canvas and keeps every logit. What the loop does, for one row (x is its canvas, M the mask token):

    x = prompt followed by gen_length times M, cut into blocks of block_length
    for each block, left to right; m = number of M in it, S = steps / number of blocks:
        for i in 0 .. S-1:
            l           = logits of the whole canvas; with guidance s > 0: u + (s+1)(c - u), u with the prompt masked
            proposal    = a token drawn from softmax(l / T); argmax(l) when T = 0, the lowest token on ties
            confidence  = log softmax(l) at the proposal (no noise, T = 1), or a uniform number for "random"
            commit      the m // S + (1 if i < m mod S else 0) surest positions of x that hold M and lie left of the
                        block's end; the lowest position on ties

Noise comes from one of two sources. "card" is the published formula, exp(l) / (-ln u)^T in float64 with torch's own
random numbers: the law. "philox" is this library's draw (:mod:`dllm_kernels.draw`), addressed by the row's seed, its
own position and the step within the block: the very tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import philox
from dllm_kernels.draw import draw
from dllm_kernels.testing import draw_scores


class Step(NamedTuple):
    """What the loop knows after one step of one row; canvases are the row alone, unpadded, [P_row + gen_length]."""

    row: int
    block: int
    step: int
    canvas: Tensor
    proposal: Tensor
    confidence: Tensor
    token_gap: float
    """Smallest distance between the two best scores of a position that could be committed."""
    confidence_gap: float
    """Distance between the last confidence that was committed and the first that was not; inf where there is none."""


def reference_generate(
    model: torch.nn.Module,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 64,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "random",
    *,
    mask_id: int,
    seeds: int | Sequence[int] | Tensor = 0,
    noise: str = "philox",
    attention_mask: Tensor | None = None,
    eos_token_id: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Complete each prompt of a batch; arguments as the model card's.

    Args:
        prompt: int64 [B, P], left-padded where `attention_mask` [B, P] is 0.
        seeds: an integer s gives row b the seed s + b; otherwise one per row.
        noise: "philox" or "card".
        eos_token_id: everything after the first of it in the generated part becomes it.
        on_step: called after every step of every row.

    Returns:
        int64 [B, P + gen_length].
    """
    assert gen_length % block_length == 0 and steps % (gen_length // block_length) == 0
    assert remasking in ("random", "none", "confidence", "low_confidence") and noise in ("philox", "card")
    canvases = []
    for b, tokens in enumerate(prompt):
        padding = 0 if attention_mask is None else int((attention_mask[b] == 0).sum())
        seed = seeds + b if isinstance(seeds, int) else int(seeds[b])
        draw = (CardNoise if noise == "card" else PhiloxNoise)(seed, temperature)
        canvas = tokens.new_full((len(tokens) - padding + gen_length,), mask_id)
        canvas[:-gen_length] = tokens[padding:]
        _denoise(
            model,
            canvas,
            gen_length=gen_length,
            block_length=block_length,
            steps_per_block=steps * block_length // gen_length,
            cfg_scale=cfg_scale,
            remasking=remasking,
            mask_id=mask_id,
            draw=draw,
            report=on_step and (lambda *told, b=b: on_step(Step(b, *told))),
        )
        if eos_token_id is not None:
            _fill_after_eos(canvas[-gen_length:], eos_token_id)
        canvases.append(torch.cat([tokens[:padding], canvas]))
    return torch.stack(canvases) if canvases else prompt.new_zeros(0, prompt.shape[1] + gen_length)


def schedule(m: int, steps: int) -> list[int]:
    """How many of m masked tokens each of the steps commits, zeros kept.

    Example:
        >>> schedule(10, 4), schedule(2, 3)
        ([3, 3, 2, 2], [1, 1, 0])
    """
    return [m // steps + (1 if i < m % steps else 0) for i in range(steps)]


def _denoise(
    model, canvas, *, gen_length, block_length, steps_per_block, cfg_scale, remasking, mask_id, draw, report
) -> None:
    """Fill the masks of one row in place."""
    given = len(canvas) - gen_length
    for block in range(gen_length // block_length):
        start = given + block * block_length
        end = start + block_length
        m = int((canvas[start:end] == mask_id).sum())
        for step, k in enumerate(schedule(m, steps_per_block)):
            logits = _guided_logits(model, canvas, given, cfg_scale, mask_id)
            proposal, score = draw.choose(logits, step)
            if remasking == "random":
                confidence = draw.uniform(len(canvas), step).to(canvas.device)
            else:
                confidence = _log_softmax(logits).gather(1, proposal[:, None]).squeeze(1)
            eligible = [p for p in range(end) if canvas[p] == mask_id]
            surest_first = sorted(eligible, key=lambda p: -float(confidence[p]))  # stable: ties stay left to right
            if remasking == "none":
                k = len(eligible) if step == 0 else 0
            for p in surest_first[:k]:
                canvas[p] = proposal[p]
            if report is not None:  # the gaps take longer than the step
                gaps = _token_gap(score()[eligible]), _confidence_gap(confidence[surest_first], k)
                report(block, step, canvas.clone(), proposal, confidence, *gaps)


@torch.no_grad()
def _guided_logits(model, canvas: Tensor, given: int, cfg_scale: float, mask_id: int) -> Tensor:
    """Logits of the whole canvas, float32 [L, V]; NaN counts as -inf."""
    logits = model(input_ids=canvas[None]).logits[0].float()
    if cfg_scale > 0:
        without_prompt = canvas.clone()
        without_prompt[:given] = mask_id
        unconditional = model(input_ids=without_prompt[None]).logits[0].float()
        logits = unconditional + (cfg_scale + 1) * (logits - unconditional)
    return torch.where(logits.isnan(), -torch.inf, logits)


class CardNoise:
    """The published formula: float64, torch's random numbers, exp(l) / (-ln u)^T."""

    def __init__(self, seed: int, temperature: float):
        self.generator = torch.Generator().manual_seed(seed)
        self.temperature = temperature

    def choose(self, logits: Tensor, step: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Tokens [L], and a function that returns what each is the argmax of [L, V]."""
        if self.temperature == 0:
            return _lowest_argmax(logits), lambda: logits
        u = torch.rand(logits.shape, dtype=torch.float64, generator=self.generator).to(logits.device)
        score = logits.double().exp() / (-u.log()) ** self.temperature
        return _lowest_argmax(score), lambda: score

    def uniform(self, length: int, step: int) -> Tensor:
        return torch.rand(length, generator=self.generator)


class PhiloxNoise:
    """This library's draw."""

    def __init__(self, seed: int, temperature: float):
        self.seed = torch.tensor(philox.as_int64(seed))
        self.temperature = temperature

    def choose(self, logits: Tensor, step: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """Tokens [L], and a function that returns how near every token was to being drawn [L, V]: that of each is the
        largest."""
        return self.token(logits, step), lambda: self.score(logits, step)

    def token(self, logits: Tensor, step: int) -> Tensor:
        return _lowest_argmax(logits) if self.temperature == 0 else self._drawn(draw, logits, step)

    def score(self, logits: Tensor, step: int) -> Tensor:
        return logits if self.temperature == 0 else self._drawn(draw_scores, logits, step)

    def _drawn(self, by: Callable[..., Tensor], logits: Tensor, step: int) -> Tensor:
        where = (self.seed[None], torch.arange(len(logits)), torch.tensor([step]))
        return by(logits.cpu(), self.temperature, *where).to(logits.device)

    def uniform(self, length: int, step: int) -> Tensor:
        seed = self.seed.expand(length)
        return philox.uniform(seed, torch.arange(length), torch.tensor(step), philox.RANDOM_CONFIDENCE)


def _lowest_argmax(score: Tensor) -> Tensor:
    """Index of each row's largest entry, the lowest on ties."""
    index = torch.arange(score.shape[1], device=score.device)
    return torch.where(score == score.amax(1, keepdim=True), index, score.shape[1]).amin(1)


def _log_softmax(l: Tensor) -> Tensor:
    """(l - max) - log sum exp(l - max), never l - lse, which is 0 from a gap of 14 on."""
    gap = l - l.amax(-1, keepdim=True)
    return gap - gap.exp().sum(-1, keepdim=True).log()


def _fill_after_eos(generated: Tensor, eos_token_id: int) -> None:
    found = (generated == eos_token_id).nonzero()
    if len(found):
        generated[int(found[0]) :] = eos_token_id


def _token_gap(score: Tensor) -> float:
    if score.shape[0] == 0:
        return float("inf")
    best, second = score.double().topk(2).values.unbind(1)
    return float((best - second).min())


def _confidence_gap(descending: Tensor, k: int) -> float:
    return float(descending[k - 1] - descending[k]) if 0 < k < len(descending) else float("inf")
