"""`generate`: the model card's sampling loop, argument for argument, at the speed of the model's body."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dllm.fast.compiled.decision import check_compile_body
from dllm.fast.head.split import output_head
from dllm.fast.model import find_mask_id, right_shift_of
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.inputs import Settings, check_eos, check_no_masks, check_prompt, prompt_lengths, row_seeds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.schedule import Block, Schedule
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.stats import Stats, stats_of
from dllm_kernels import _impl
from dllm_kernels.transfer_tokens.api import MAX_WINDOW


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 64,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "random",
    *,
    mask_id: int | None = None,
    tokenizer: object | None = None,
    seed: int | list[int] | Tensor | None = None,
    attention_mask: Tensor | None = None,
    eos_token_id: int | None = None,
    on_step: Callable[[Step], object] | None = None,
    return_stats: bool = False,
    impl: str = "auto",
    cuda_graph: bool | None = None,
    compile_body: bool | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """Append `gen_length` tokens to each prompt by masked diffusion: start from masks, commit the most confident in
    steps.

    The canvas is filled block by block from left to right. In each of the steps / blocks steps of a block, every masked
    position of the block gets a proposal argmax(l + T g) with Gumbel noise g, and the k of highest confidence
    softmax(l)[proposal] (or of random order) are committed, with k_i = m // S + (i < m mod S) for m masks over S steps.
    Under guidance l = u + (cfg_scale + 1) (c - u), where u sees the canvas with its prompt masked. The logits of a
    position are those of the one before it if the model's configuration says so (Dream, RND1).

    Same tokens as the model card's loop; the head runs only where a token can still be committed, and logits never
    exist for more than a few rows. A row's tokens depend on its own prompt and seed, not on its batch.

    Args:
        model: a masked language model: called as model(input_ids=, attention_mask=), output with `.logits`, and
            `get_output_embeddings()` naming its LM head. Left exactly as it was, also when interrupted, and other
            threads may use it meanwhile. Under flash attention rows of unequal length run without their padding, where
            the model can do so; where it sees padding whatever `attention_mask` says, or takes none, those of one
            length run together (`Stats.note`). That is found on a few tokens, once per model
            (:mod:`dllm.fast.visibility`).
        prompt: int64 [B, P], on the model's device, without mask tokens. P or B may be 0.
        steps: denoising steps in all, a multiple of the number of blocks.
        gen_length: tokens to generate, a multiple of block_length (the card's table calls it max_new_tokens).
        block_length: tokens per block.
        temperature: T, from 0 to 1e30; 0 takes the argmax.
        cfg_scale: classifier-free guidance, from 0 to 1e30; 0 is off.
        remasking: "low_confidence" (or "confidence"), "random", or "none": nothing is masked again, so the first step
            of a block commits all of it.
        mask_id: the mask token; None takes the tokenizer's, else model.config.mask_token_id, else that of the tokenizer
            at model.name_or_path.
        tokenizer: anything with `mask_token_id`.
        seed: of the noise: an int s gives row i the seed s + i; B integers are taken as given; None draws s from
            torch's generator. The same seed gives the same tokens on any device, alone or in a batch.
        attention_mask: [B, P] of 0 and 1 for left-padded prompts.
        eos_token_id: a row is finished once an EOS stands with no mask left of it; the rest of it becomes EOS.
        on_step: called with a :class:`Step` after each step.
        return_stats: also return :class:`Stats`.
        impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
        cuda_graph: None captures the step as a CUDA graph where that works and pays, True insists, False never does.
        compile_body: the model's body through torch.compile: None where that works and pays for so many steps, True
            insists, False never does. A compiled body rounds otherwise (docs/samplers.md).

    Returns:
        int64 [B, P + gen_length], the prompts with what was generated; with `return_stats` a pair with :class:`Stats`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above, or prompt and gen_length exceed the model's table of
            positions; the model has not run.
        ValueError: the model is causal, which was tried on a few tokens, or attends block by block (LLaDA2).
        RuntimeError: a row's logits had no finite number (names row and step), an explicit `impl` is not available,
            cuda_graph=True and the step cannot be captured, or compile_body=True and the body cannot be compiled.

    Source: the sampling loop of the ModernBERT-chat model card, after LLaDA (arXiv:2502.09992).

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        ...                     intermediate_size=32)
        >>> model = BertForMaskedLM(config).eval()
        >>> generate(model, torch.tensor([[7, 8, 9]]), steps=4, gen_length=4, block_length=2, mask_id=3).shape
        torch.Size([1, 7])
    """
    began = time.perf_counter()
    settings = Settings(
        steps=steps,
        gen_length=gen_length,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        remasking=remasking,
    )
    output_head(model)
    mask_id = find_mask_id(model, mask_id, tokenizer)
    check_prompt(model, prompt, gen_length, mask_id)
    eos_token_id = check_eos(model, eos_token_id, mask_id)
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step must be callable, got {type(on_step).__name__}")
    lengths = prompt_lengths(prompt, attention_mask)
    check_no_masks(prompt, lengths, mask_id)
    seeds = row_seeds(seed if seed is not None or settings.draws else 0, len(prompt), prompt.device)
    policy = Policy(
        mask_id=mask_id,
        window=min(settings.gen_length, MAX_WINDOW),
        block_length=settings.block_length,
        temperature=settings.temperature,
        cfg_scale=settings.cfg_scale,
        right_shift=bool(right_shift_of(model)),
        confidence="random" if settings.order == "random" else "log_prob",
        eos_id=eos_token_id,
        impl=impl,
    )
    padding = prompt.shape[1] - lengths
    show = None if on_step is None else lambda step: on_step(_left_padded(step, padding))
    denoiser = Denoiser(
        model, policy, cuda_graph=cuda_graph, compile_body=compile_body, on_step=show, timed=return_stats
    )
    _impl.choose(impl, prompt.device)
    check_compile_body(compile_body, prompt.device)
    canvas = _rotate(denoiser.run(_batch(prompt, lengths, seeds, settings, mask_id)), -padding)
    if not return_stats:
        return canvas
    generated = torch.arange(canvas.shape[1], device=canvas.device) >= prompt.shape[1]
    generated = generated.expand(canvas.shape)
    return canvas, stats_of(denoiser, canvas, generated, eos_token_id, time.perf_counter() - began)


def _batch(prompt: Tensor, lengths: Tensor, seeds: Tensor, settings: Settings, mask_id: int) -> DenoisingBatch:
    """The canvases, packed: padding on a row's left moves behind its end, where no real token sees it."""
    (batch, columns), device = prompt.shape, prompt.device
    canvas = torch.cat([prompt, prompt.new_full((batch, settings.gen_length), mask_id)], dim=1)
    size = settings.block_length
    rows = [
        [Block(length + n * size, length + (n + 1) * size, settings.transfers()) for n in range(settings.blocks)]
        for length in lengths.tolist()
    ]
    return DenoisingBatch(
        tokens=_rotate(canvas, columns - lengths),
        given=torch.arange(columns + settings.gen_length, device=device) < lengths[:, None],
        first=lengths,
        length=lengths + settings.gen_length,
        seeds=seeds,
        schedule=Schedule.of(rows, device),
    )


def _left_padded(step: Step, padding: Tensor) -> Step:
    """A step as the caller's left-padded rows see it."""
    tensors = ("canvas", "tentative", "confidence")
    return step._replace(**{name: _rotate(getattr(step, name), -padding) for name in tensors})


def _rotate(canvas: Tensor, by: Tensor) -> Tensor:
    """Each row b of [B, L] moved `by[b]` columns to the left, around the edge."""
    columns = canvas.shape[1]
    return canvas.gather(1, (torch.arange(columns, device=canvas.device) + by[:, None]) % columns)
