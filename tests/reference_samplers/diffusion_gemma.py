"""DiffusionGemma's sampling as a plain loop over one row: uniform noise, self-conditioning, entropy-bound acceptance.

A row generates canvases of L tokens one after the other. All that stands before a canvas is read by the model's encoder
(causal) into a cache. The decoder (it sees the cache and the whole canvas) then takes at most N steps, s = 0 ... N - 1:

    l = c tanh(a / c)                          a the head's output for the canvas, c the softcap
    T = t_min + (t_max - t_min) (N - s) / N,   z = l / T,   p = softmax(z),   H = -sum p log p
    token    ~ p;   argmax: of z, the lowest of equals
    accepted = the positions of lowest H, each as long as the entropies before it sum to at most the bound
    canvas   = token where accepted, else uniform over the vocabulary
    signal   = sum_v p_v E_v sqrt(H_size), the next step's self-conditioning; zero in a canvas's first step

A canvas is over after N steps, or as soon as argmax equals that of the last `stability` steps and mean H lies below
`confidence`. Its result is the argmax of its last step: what was accepted only tells the next step what to read.
After an EOS in a finished canvas the rest becomes padding, and the row ends.

Noise at (seed, the row's own position, step within the canvas): tokens by :func:`dllm_kernels.draw.draw`; the uniform
token that stands at a position when step s begins at s, stream UNIFORM_TOKENS.

Source: transformers' `DiffusionGemmaForBlockDiffusion.generate`, read; written anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dllm_kernels.draw import draw
from dllm_kernels.philox import uniform_token


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings as the checkpoint's generation_config.json has them."""

    max_new_tokens: int = 256
    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    eos: tuple[int, ...] = ()
    pad: int | None = None


@dataclass(frozen=True)
class DenoisedStep:
    """One step of a row: tokens [L], entropy [L], accepted bool [L], whether the canvas was over with it, and the
    logits l [L, V]."""

    before: Tensor
    sampled: Tensor
    argmax: Tensor
    entropy: Tensor
    accepted: Tensor
    over: bool
    logits: Tensor


@dataclass
class GemmaTrace:
    """canvases: the steps of each canvas. tokens: what the row generated, whole canvases."""

    canvases: list[list[DenoisedStep]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@torch.no_grad()
def diffusion_gemma(model: nn.Module, prompt: Sequence[int], rules: Rules, *, seed: int) -> GemmaTrace:
    """The trace of one row."""
    from transformers import DynamicCache

    size = model.config.canvas_length
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    trace, unread, seen = GemmaTrace(), torch.tensor([list(prompt)]), 0
    for _ in range(-(-rules.max_new_tokens // size)):
        positions = torch.arange(seen, seen + unread.shape[1])
        model.model.encoder(input_ids=unread, past_key_values=cache, position_ids=positions[None])
        seen += unread.shape[1]
        steps = _denoise(model, cache, seen, rules, seed)
        trace.canvases.append(steps)
        unread, ended = _finished(steps[-1].argmax, rules)
        trace.tokens += unread.tolist()
        if ended:
            break
        unread = unread[None]
    return trace


def _denoise(model: nn.Module, cache: object, begin: int, rules: Rules, seed: int) -> list[DenoisedStep]:
    text, size, steps = model.config.text_config, model.config.canvas_length, []
    position, signal = torch.arange(begin, begin + size), None
    canvas = _uniform(seed, position, 0, text.vocab_size)
    for step in range(rules.max_denoising_steps):
        logits = _logits(model, cache, canvas, position, signal)
        T = temperature(rules, step)
        z = logits / T
        sampled = draw(logits, T, torch.tensor([seed]), position, torch.tensor([step]))
        argmax, log_p = z.argmax(-1), z.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
        accepted = accept(entropy, rules.entropy_bound)
        over = _is_over(steps, argmax, entropy, rules)
        steps.append(DenoisedStep(canvas, sampled, argmax, entropy, accepted, over, logits))
        if over:
            break
        canvas = torch.where(accepted, sampled, _uniform(seed, position, step + 1, text.vocab_size))
        signal = expected_embedding(model, z)
    return steps


def temperature(rules: Rules, step: int) -> Tensor:
    """T of a step, float32, rounded as transformers rounds it: N - s over N first."""
    left = torch.tensor(rules.max_denoising_steps - step, dtype=torch.int32)
    return rules.t_min + (rules.t_max - rules.t_min) * (left / rules.max_denoising_steps)


def accept(entropy: Tensor, bound: float) -> Tensor:
    """Positions in order of rising entropy, each if those before it sum to at most the bound. The first always."""
    order = entropy.argsort(stable=True)
    before = entropy[order].cumsum(0) - entropy[order]
    return torch.zeros_like(entropy, dtype=torch.bool).scatter(0, order, before <= bound)


def expected_embedding(model: nn.Module, z: Tensor) -> Tensor:
    """The next step's signal [L, H]: z rounded to the weights' dtype before the softmax, as transformers keeps it."""
    embedding = model.model.decoder.embed_tokens
    dtype = embedding.weight.dtype
    p = z.to(dtype).softmax(-1, dtype=torch.float32).to(dtype)
    return p @ embedding.weight * embedding.embed_scale.to(dtype)


def _logits(model: nn.Module, cache: object, canvas: Tensor, position: Tensor, signal: Tensor | None) -> Tensor:
    """l [L, V], float32. The signal is put in the place of the one that the decoder would compute from logits."""
    decoder = model.model.decoder

    def inject(module: nn.Module, arguments: tuple) -> tuple:
        return arguments if signal is None else (arguments[0], signal[None].to(arguments[0].dtype))

    hook = decoder.self_conditioning.register_forward_pre_hook(inject)
    try:
        output = decoder(
            decoder_input_ids=canvas[None], past_key_values=cache, decoder_position_ids=position[None]
        ).last_hidden_state[0]
    finally:
        hook.remove()
    softcap = model.config.text_config.final_logit_softcapping
    return torch.tanh(model.lm_head(output).float() / softcap) * softcap


def _is_over(before: list[DenoisedStep], argmax: Tensor, entropy: Tensor, rules: Rules) -> bool:
    if rules.stability_threshold > len(before) or not entropy.mean() < rules.confidence_threshold:
        return False
    kept = before[len(before) - rules.stability_threshold :]
    return all(torch.equal(step.argmax, argmax) for step in kept)


def _finished(canvas: Tensor, rules: Rules) -> tuple[Tensor, bool]:
    """A finished canvas, padded after an EOS, and whether there was one."""
    ends = torch.isin(canvas, torch.tensor(rules.eos, dtype=canvas.dtype))
    after = ends.cumsum(0) - ends.long() > 0
    if rules.pad is not None:
        canvas = torch.where(after, rules.pad, canvas)
    return canvas, bool(ends.any())


def _uniform(seed: int, position: Tensor, step: int, vocab_size: int) -> Tensor:
    return uniform_token(torch.tensor(seed), position, torch.tensor(step), vocab_size)
