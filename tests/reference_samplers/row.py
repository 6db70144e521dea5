"""One row, alone: its canvas, what the model says of it, and what has been committed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tests.reference_loop import PhiloxNoise, _log_softmax
from tests.reference_samplers.rules import Choice, Confidence, ulps


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How logits l [L, V] of a canvas become a choice and a law; applied in the order of the fields.

    cfg_scale: s > 0: u + (s+1)(c - u), u from the canvas with every given token masked, but for `cfg_keep_tokens`.
    suppress_tokens: l = -inf before the choice.
    right_shift_logits: position p reads the logits of p-1; position 0 reads its own.
    temperature: the choice is argmax(l + T g); argmax(l) when T = 0; the lowest token on ties.
    top_p, top_k: a token is kept where the tokens with strictly larger l / T hold at most top_p of softmax(l / T) and
        are fewer than top_k; the others are -inf for choice and law. T = 0 stands for 1 here.
    begin_suppress_tokens: l = -inf after the choice, for the law only: such a choice has confidence 0.
    tempered: the law is softmax(l / T) where T > 0; otherwise softmax(l).
    """

    cfg_scale: float = 0.0
    cfg_keep_tokens: Sequence[int] | None = None
    suppress_tokens: Sequence[int] | None = None
    right_shift_logits: bool = False
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    tempered: bool = False


class Look(NamedTuple):
    """What one forward says. `law` and `law64` are log-probabilities [L, V], computed in float32 and in float64.

    `scores` computes :attr:`Step.score64`, which only near ties need and which takes longer than all the rest.
    """

    block: int
    step: int
    eligible: list[int]
    proposal: Tensor
    scores: Callable[[], Tensor]
    law: Tensor
    law64: Tensor
    filter_gap: float

    @property
    def surety(self) -> Confidence:
        """Log-probability of each position's proposal."""
        at = self.proposal[:, None]
        return Confidence(self.law.gather(1, at).squeeze(1), self.law64.gather(1, at).squeeze(1))

    @property
    def neg_entropy(self) -> Confidence:
        """sum p ln p of each position's law, at most 0; -inf where there is no law."""

        def of(law: Tensor) -> Tensor:
            p = law.exp()
            total = torch.where(p > 0, p * law, 0.0).sum(1)
            return torch.where(p.amax(1) > 0, total, -torch.inf)

        return Confidence(of(self.law), of(self.law64))


class Step(NamedTuple):
    """One step of the trace. Gaps are in float32 ulp (:func:`tests.reference_samplers.rules.ulps`)."""

    block: int
    step: int
    canvas: Tensor
    """int64 [L], after the step."""
    eligible: list[int]
    committed: list[int]
    proposal: Tensor
    scores: Callable[[], Tensor]
    transfer_gap: float
    """How far the step was from committing other positions."""
    filter_gap: float
    """How far an eligible position was from another top-p or top-k set."""

    @property
    def score64(self) -> Tensor:
        """float64 [L, V], how near each token was to being proposed (:func:`dllm_kernels.testing.draw_scores`)."""
        return self.scores()

    @property
    def token_gap(self) -> float:
        """The narrowest distance between the two best scores of an eligible position."""
        best = self.score64[self.eligible].topk(2).values.tolist()
        return min((ulps(a, b) for a, b in best), default=float("inf"))


class Trace(NamedTuple):
    """canvas: int64 [L]. history: the start canvas, then the canvas after every step. forwards: steps at which the
    model ran; the two passes of guidance count once."""

    canvas: Tensor
    history: list[Tensor]
    forwards: int
    steps: list[Step]

    @property
    def changes(self) -> list[Tensor]:
        """The history without the steps that committed nothing."""
        return without_repeats(self.history)


class Row:
    """A canvas int64 [L] that is being filled. Columns from `generated_from` on are the generated part."""

    def __init__(
        self, model, canvas: Tensor, *, generated_from, mask_id, seed, eos_token_id, reading: Reading, eot_token_id=None
    ):
        self.model, self.canvas, self.generated_from = model, canvas, generated_from
        self.mask_id, self.seed, self.eos_token_id, self.reading = mask_id, seed, eos_token_id, reading
        self.eot_token_id = eot_token_id
        self.given = canvas != mask_id
        self.noise = PhiloxNoise(seed, reading.temperature)
        self.history, self.steps = [canvas.clone()], []
        self.finished = False

    def masks(self, start: int = 0, end: int | None = None) -> list[int]:
        """Columns from `start` to before `end` that hold the mask token."""
        return [p for p in range(start, len(self.canvas) if end is None else end) if self.canvas[p] == self.mask_id]

    def uniform(self, step: int) -> Confidence:
        u = self.noise.uniform(len(self.canvas), step)
        return Confidence(u, u.double())

    def look(self, block: int, step: int, end: int, *, start: int = 0) -> Look:
        """Run the model and choose a token everywhere; masks from `start` to before `end` may be committed."""
        l, r = self._logits(), self.reading
        eligible = self.masks(start, end)
        kept, filter_gap = _filter(l / r.temperature if r.temperature > 0 else l, r.top_p, r.top_k, eligible)
        left = l.masked_fill(~kept, -torch.inf)
        if bool((left[eligible].amax(1) == -torch.inf).any()):
            raise ValueError("a position that must be filled has no finite logit")
        return Look(
            block,
            step,
            eligible,
            proposal=self.noise.token(left, step),
            scores=functools.cache(lambda: self.noise.score(left.double(), step)),
            law=self._law(l, kept),
            law64=self._law(l.double(), kept),
            filter_gap=filter_gap,
        )

    def commit(self, look: Look, choice: Choice) -> None:
        for p in choice.positions:
            self.canvas[p] = look.proposal[p]
        self._stop_at_eos()
        canvas = self.canvas.clone()
        self.history.append(canvas)
        self.steps.append(
            Step(
                look.block,
                look.step,
                canvas,
                look.eligible,
                choice.positions,
                look.proposal,
                look.scores,
                transfer_gap=choice.gap,
                filter_gap=look.filter_gap,
            )
        )

    def trace(self) -> Trace:
        return Trace(self.canvas, self.history, len(self.steps), self.steps)

    @torch.no_grad()
    def _logits(self) -> Tensor:
        """Guided, suppressed and shifted, float32 [L, V]; NaN counts as -inf, +inf as the largest finite number."""
        r = self.reading
        l = self.model(input_ids=self.canvas[None]).logits[0].float().cpu()
        if r.cfg_scale > 0:
            kept = torch.isin(self.canvas, torch.tensor(list(r.cfg_keep_tokens or ()), device=self.canvas.device))
            hidden = self.canvas.masked_fill(self.given & ~kept, self.mask_id)
            u = self.model(input_ids=hidden[None]).logits[0].float().cpu()
            l = u + (r.cfg_scale + 1) * (l - u)
        l = l.nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)
        l[:, list(r.suppress_tokens or ())] = -torch.inf
        return torch.cat([l[:1], l[:-1]]) if r.right_shift_logits else l

    def _law(self, l: Tensor, kept: Tensor) -> Tensor:
        r = self.reading
        x = (l / r.temperature if r.tempered and r.temperature > 0 else l).masked_fill(~kept, -torch.inf)
        x[:, list(r.begin_suppress_tokens or ())] = -torch.inf
        return _log_softmax(x).nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # nothing left: no law

    def _stop_at_eos(self) -> None:
        """An EOS or end of turn with no mask left of it in the generated part ends the row: the rest becomes EOS."""
        if self.eos_token_id is None:
            return
        generated = self.canvas[self.generated_from :]
        ends = [token for token in (self.eos_token_id, self.eot_token_id) if token is not None]
        found = torch.isin(generated, torch.tensor(ends, device=generated.device)).nonzero().flatten().tolist()
        if found and not bool((generated[: found[0]] == self.mask_id).any()):
            generated[found[0] + 1 :] = self.eos_token_id
            self.finished = True


def new_row(
    model,
    prompt,
    *,
    max_new_tokens,
    max_length=None,
    mask_id,
    seed,
    eos_token_id=None,
    eot_token_id=None,
    reading: Reading,
) -> Row:
    """The prompt followed by masks: max_new_tokens of them, or, where that is None, up to max_length."""
    prompt = torch.as_tensor(prompt, dtype=torch.int64)
    n = max_length - len(prompt) if max_new_tokens is None else max_new_tokens
    canvas = torch.cat([prompt, prompt.new_full((n,), mask_id)])
    return Row(
        model,
        canvas,
        generated_from=len(prompt),
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        eot_token_id=eot_token_id,
        reading=reading,
    )


def blocks(start: int, end: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(number, first column, column behind the last) of each block; the last may be shorter.

    Example:
        >>> list(blocks(3, 8, 3))
        [(0, 3, 6), (1, 6, 8)]
    """
    for number, first in enumerate(range(start, end, size)):
        yield number, first, min(first + size, end)


def without_repeats(history: Sequence[Tensor]) -> list[Tensor]:
    return [x for i, x in enumerate(history) if i == 0 or not torch.equal(x, history[i - 1])]


def _filter(x: Tensor, top_p: float | None, top_k: int | None, eligible: list[int]) -> tuple[Tensor, float]:
    """Which tokens are kept, bool [L, V], by the mass and by the number of the tokens that are strictly larger."""
    kept, gap, vocab_size = torch.ones_like(x, dtype=torch.bool), float("inf"), x.shape[1]
    if (top_p is None or top_p >= 1) and (top_k is None or top_k >= vocab_size):
        return kept, gap
    ascending = x.double().sort(1).values
    larger_from = torch.searchsorted(ascending, x.double(), right=True)
    tail = ascending.softmax(1).flip(1).cumsum(1).flip(1)
    mass = torch.cat([tail, torch.zeros(len(x), 1)], 1).gather(1, larger_from)  # of the strictly larger
    if top_p is not None and top_p < 1:
        kept &= mass <= top_p
        gap = min([gap, *(ulps(m, top_p) for m in mass[eligible].flatten().tolist())])
    if top_k is not None and top_k < vocab_size:
        kept &= vocab_size - larger_from < top_k
        edge = ascending[eligible][:, [vocab_size - top_k, vocab_size - top_k - 1]].tolist()
        gap = min([gap, *(ulps(a, b) for a, b in edge)])
    return kept, gap
