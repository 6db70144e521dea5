"""Gumbel-argmax with confidence from hidden states and LM head, the logits never stored."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.gumbel_argmax.api import GumbelArgmax, check_noise, check_statistics
from dllm_kernels.truncation_floor.api import cuts


def linear_gumbel_argmax(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.0,
    seeds: int | Tensor | None = None,
    positions: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    statistics: str = "raw",
    softcap: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    unconditional: Tensor | None = None,
    cfg_scale: float = 0.0,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    impl: str = "auto",
) -> GumbelArgmax:
    r""":func:`gumbel_argmax` of hidden @ weight.T + bias, whose logits exist for a tile, a slice or a few rows only.

    .. math::
        l_r = W\, \left((s + 1)\, h_{rows_r} - s\, u_{rows_r}\right) + b, \qquad
        token_r \sim \mathrm{softmax}(l_r / T_r)

    There are R result rows. `rows` names the hidden row that each of them reads, the masked positions say; a model with
    a right shift passes `positions - 1`. What is given per row (temperature, seeds, positions, step) is given per
    *result* row, in the order of `rows`, where :func:`gumbel_argmax` has it per row of its logits. Guidance (`h` with,
    `u` without the prompt, scale s) is combined before the head, which is linear: one product instead of two. The
    combination is float32, rounded once to the dtype of the hidden states.

    How: where there are few rows on a GPU (32 and less) and no softcap, one kernel multiplies a tile of 128 tokens and
    reduces it; its logits stay float32. With more of them a library multiplies slices of the vocabulary, with logits
    rounded to the dtype of the hidden states, and the kernel of :func:`gumbel_argmax` consumes them. On a CPU each
    thread multiplies stripes of 512 tokens with up to 64 rows at a time and reduces them while they are in its cache,
    the logits rounded as a library's. With `top_k` or `top_p`, which look at whole rows, the product is that of blocks
    of rows instead. Which one follows from shapes and the machine. All products accumulate in float32, so tokens of
    different plans are the same up to near ties in float32, and up to rounded logits in the others. On a CPU and in the
    fused plan a row has the same bits alone and in any batch, with any number of threads; in a GPU's other plans as far
    as the library's product has (pad the rows to a multiple of 64). Instructions of a CPU for bfloat16, which libraries
    use too, take numbers below 2^-126 as 0.

    Memory beyond arguments and results, in bytes, with s the size of the dtype and N, R, H, V as below:

        fused         24 R ceil(V / 128), and 72 R ceil(V / 128) where there is noise
        GPU, slices   min(B, R V s) + 24 R ceil(V / 16384) with B = 2^25 up to 192 rows, 2^27 beyond;
                      and 72 R ceil(V / 16384) where there is noise
        GPU, top-k/p  max(min(2^27, R V s), 16 V s) and what :func:`gumbel_argmax` takes for its rows
        CPU, stripes  T (2112 min(R, 64) + 64 R + 32 H) + (4 H + 92) R for T threads, R being at most 512 and rounded up
                      to 1, 4, 8 or a multiple of 16 (of 16 only, and 64 H for 32 H, where bfloat16 has matrix tiles);
                      and 56 R for each stripe that waits for a lower one whose thread was held up
        CPU, top-k/p  64 V s, what stripes take for 64 rows, and what :func:`gumbel_argmax` takes for its rows

    besides R H s for each of `rows` and `unconditional`, or s (N H + V H + V) for operands that autocast casts.

    Args:
        hidden: [N, H], float32, bfloat16 or float16.
        weight: [V, H], the LM head, of the same dtype unless autocast is on (then both are cast as
            :func:`torch.nn.functional.linear` casts them).
        bias: [V], of the weight's dtype.
        temperature: number or tensor, one for all or [R]: as in :func:`gumbel_argmax`, like the next eight.
        seeds, positions: integer or tensor, one for all or [R]; needed unless `temperature` is the number 0.
        step: integer or tensor, one for all or [R].
        suppress, begin_suppress: bool [V].
        statistics: "raw" or "tempered".
        softcap: None, or c: logits are rounded to the dtype in every plan, then c tanh(l / c) in float32.
        top_k, top_p: None, or which tokens are kept.
        unconditional: [N, H], hidden states without the prompt, of the dtype of `hidden`; indexed by `rows` like it.
        cfg_scale: s, finite and at least 0; above 0 it needs `unconditional`.
        rows: int64 [R], in any order and repeated or not; a number outside [0, N) gives token -1. None: R = N.
        count: one-element integer tensor on the device: only the first `count` result rows are computed; the rest get
            token -1.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`GumbelArgmax`, fields of shape [R]. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: head and sampling in one kernel as FlashSampling has it for autoregressive models; guidance of LLaDA
    (arXiv:2502.09992).

    Example:
        >>> hidden, head = torch.eye(3, 2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> linear_gumbel_argmax(hidden, head).token
        tensor([2, 1, 0])
        >>> masked = torch.tensor([1])
        >>> linear_gumbel_argmax(hidden, head, rows=masked, temperature=0.5, seeds=7, positions=masked).token.shape
        torch.Size([1])
    """
    hidden, weight, bias = check_head(hidden, weight, bias)
    device, (n_hidden, width), vocab_size = hidden.device, hidden.shape, len(weight)
    if rows is not None:
        _checks.tensor("rows", rows, dtypes=(torch.int64,), shape=("R",), device=device)
    n_rows = n_hidden if rows is None else len(rows)
    noise = check_noise(temperature, seeds, positions, step, n_rows, device)
    options = check_statistics(suppress, begin_suppress, statistics, noise, vocab_size, device)
    softcap = _checks.softcap(softcap)
    top_k, top_p = cuts(top_k, top_p, vocab_size)
    cfg_scale = _checks.finite_at_least_zero("cfg_scale", cfg_scale)
    if unconditional is not None:
        _checks.tensor(
            "unconditional", unconditional, dtypes=_checks.LOGIT_DTYPES, shape=(n_hidden, width), device=device
        )
        unconditional = unconditional.to(hidden.dtype).contiguous()  # the strides that the combination will have
    elif cfg_scale != 0:
        raise ValueError(f"cfg_scale {cfg_scale} needs unconditional: the hidden states without the prompt")
    if count is not None:
        count = _checks.per_row("count", count, 1, torch.int64, device)
    module = importlib.import_module(f"dllm_kernels.linear_gumbel_argmax.{_impl.choose(impl, device)}")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        found = module.linear_gumbel_argmax(
            *(hidden, weight, bias),
            unconditional=unconditional if cfg_scale else None,
            cfg_scale=cfg_scale,
            rows=rows,
            count=count,
            softcap=softcap,
            top_k=top_k,
            top_p=top_p,
            **noise,
            **options,
        )
    return GumbelArgmax(*found)


def check_head(hidden: object, weight: object, bias: object) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states and head, checked; under autocast in its dtype."""
    dtypes = _checks.LOGIT_DTYPES
    _checks.tensor("hidden", hidden, dtypes=dtypes, shape=("N", "H"))
    device, width = hidden.device, hidden.shape[1]
    cast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if cast else hidden.dtype
    _checks.tensor("weight", weight, dtypes=dtypes if cast else (dtype,), shape=("V", width), device=device)
    if width == 0:
        raise ValueError("hidden must have at least one column, got shape [N, 0]")
    if not 0 < len(weight) <= 2**31 - 2**16:
        raise ValueError(f"weight must have from 1 to 2^31 - 2^16 tokens, got {len(weight)}")
    for name, matrix in (("hidden", hidden), ("weight", weight)):
        if matrix.stride(1) != 1 and width > 1:
            raise ValueError(
                f"{name} must have adjacent columns (stride 1 in the last dimension), got {matrix.stride()}"
            )
    if bias is not None:
        _checks.tensor("bias", bias, dtypes=dtypes if cast else (dtype,), shape=(len(weight),), device=device)
        bias = bias.detach().to(dtype).contiguous()
    return hidden.detach().to(dtype), weight.detach().to(dtype), bias
