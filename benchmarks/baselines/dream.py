"""Dream's diffusion_generate: a time grid, top-p and top-k of the tempered probabilities, four orders of unmasking."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.llada import left_padded_canvas
from benchmarks.card_loop import Noise, TorchNoise, guided_logits

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@torch.no_grad()
def diffusion_generate(
    model: nn.Module,
    prompt: Tensor,
    attention_mask: Tensor | None = None,
    *,
    mask_id: int,
    max_new_tokens: int = 20,
    steps: int = 512,
    eps: float = 1e-3,
    alg: str = "origin",
    alg_temp: float = 0.0,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    cfg_scale: float = 0.0,
    right_shift_logits: bool = True,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete left-padded prompts [B, P].

    Args:
        attention_mask: [B, P], 0 at padding; None: no padding.
        alg: "origin" commits each masked position independently; the others commit those of highest confidence: the
            token's probability (maskgit_plus), its margin over the second token (topk_margin), or negative entropy.
        alg_temp: above 0, positions are drawn from softmax(confidence / alg_temp) instead.
        top_p, top_k: filters of the tokens; None: no filter.
        cfg_scale: guidance, as dLLM 0.1 adds it.
        right_shift_logits: the logits of position p are those at p - 1, as Dream's models are trained.

    Returns:
        int64 [B, P + max_new_tokens].

    Raises:
        ValueError: `alg` is unknown.
    """
    if alg not in ALGORITHMS:
        raise ValueError(f"alg must be one of {', '.join(ALGORITHMS)}, got {alg!r}")
    noise = noise or TorchNoise()
    canvas, attention_mask = left_padded_canvas(prompt, attention_mask, max_new_tokens, mask_id)
    given = canvas != mask_id
    times = torch.linspace(1, eps, steps + 1, device=canvas.device)
    moved = 0  # steps that committed something so far: the step number of random numbers
    for step in range(steps):
        masked = canvas == mask_id
        logits = guided_logits(model, canvas, given, mask_id, cfg_scale, attention_mask)
        if right_shift_logits:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        tokens, confidence = sample_tokens(logits[masked], masked, moved, noise, alg, temperature, top_p, top_k)
        mark("head")
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1.0
        if alg == "origin":
            revealed = noise.random_confidence(masked, step)[masked] < share
            canvas[masked] = torch.where(revealed, tokens, mask_id)
            moved += 1
        elif (k := int(masked.sum() / len(canvas) * share)) > 0:
            places = noise.place(masked, moved) if alg_temp > 0 else None
            commit_highest(canvas, masked, tokens, confidence, k, alg_temp, places)
            moved += 1
        mark("transfer")
    return canvas


def sample_tokens(
    logits: Tensor,
    masked: Tensor,
    step: int,
    noise: Noise,
    alg: str,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
) -> tuple[Tensor, Tensor]:
    """Tokens [N] and confidences [N] for the logits [N, V] of the masked positions."""
    if temperature > 0:
        logits = logits / temperature
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if temperature > 0:
        tokens = noise.draw(logits, masked, step)
        confidence = probabilities.gather(-1, tokens[:, None])[:, 0]
    else:
        confidence, tokens = probabilities.max(dim=-1)
    if alg == "topk_margin":
        first, second = probabilities.sort(dim=-1, descending=True).values[:, :2].unbind(dim=-1)
        confidence = first - second
    if alg == "entropy":
        confidence = (probabilities * (probabilities + 1e-10).log()).sum(dim=-1)
    return tokens, confidence


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits [N, V] with -inf for a token where more probable tokens have more than `top_p` of the probability.

    Example:
        >>> keep_top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).exp()
        tensor([[0.5000, 0.3000, 0.0000]])
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    dropped = probabilities.cumsum(dim=-1) - probabilities > top_p
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)


def commit_highest(
    canvas: Tensor,
    masked: Tensor,
    tokens: Tensor,
    confidence: Tensor,
    k: int,
    alg_temp: float,
    places: Tensor | None,
) -> None:
    """Commit the k masked positions of highest confidence in every row.

    With `places`, Gumbel noise [B, L], the k positions are drawn from softmax(confidence / alg_temp).
    """
    everywhere = torch.full(canvas.shape, -torch.inf, dtype=torch.float64, device=canvas.device)
    everywhere[masked] = confidence.to(torch.float64)
    if places is not None:
        everywhere = everywhere / alg_temp + places
    proposals = canvas.clone()
    proposals[masked] = tokens
    chosen = everywhere.topk(k).indices
    canvas.scatter_(1, chosen, proposals.gather(1, chosen))
