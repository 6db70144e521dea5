"""A sampled token and the expected embedding of each row, from hidden states and a tied head, no logits stored."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl
from dllm_kernels.gumbel_argmax.api import GumbelArgmax, check_noise, check_statistics
from dllm_kernels.linear_gumbel_argmax.api import check_head


class ExpectedEmbedding(NamedTuple):
    """What one pass over the rows of a tied head tells.

    sampled: :class:`GumbelArgmax`, fields [R]: token, argmax, and the statistics of the softmax below.
    embedding: [R, H] in the dtype of the products, the mean of the weight's rows under the same softmax; 0 where
        token is -1.
    """

    sampled: GumbelArgmax
    embedding: Tensor


def linear_expected_embedding(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.0,
    seeds: int | Tensor | None = None,
    positions: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress: Tensor | None = None,
    statistics: str = "tempered",
    softcap: float | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    impl: str = "auto",
) -> ExpectedEmbedding:
    r""":func:`linear_gumbel_argmax`, and the expectation of the weight's rows under the softmax that it measures.

    .. math::
        a_r = W\, h_{rows_r} + b, \qquad l_r = c \tanh(a_r / c), \qquad
        token_r \sim \mathrm{softmax}(l_r / T_r), \qquad
        embedding_r = \sum_v \mathrm{softmax}(l_r / T_r)_v\, W_v

    This is the self-conditioning signal of a uniform diffusion model with tied embeddings: its sampler wants a token,
    the argmax, an entropy and this mean of each position, and nothing else of the logits. Without noise and at
    statistics of softmax(l), the defaults, it is what the first pass of a training step wants.

    Rounding: a is rounded to the dtype of the products, l is float32. Probabilities meet the weight in float32 on a CPU
    and in the dtype of the products on a GPU. A sampler in plain PyTorch rounds l / T to that dtype before its softmax;
    in bfloat16 that costs up to 20 times the error of the result's own rounding, and is not copied.

    How, on a CPU: each thread multiplies stripes of 512 tokens with up to 64 rows, turns the logits into weights
    relative to the largest so far, and multiplies them with the same stripe while it is in cache. So the weight is read
    once. Parts of four stripes have sums of their own, combined in the order of the vocabulary: a row has the same bits
    alone and in any batch, with any number of threads, and `sampled` those of :func:`linear_gumbel_argmax`. A token
    whose l / T is 36 below the largest of its part counts as 0. On a GPU libraries multiply slices of the vocabulary
    around two kernels: ``triton.py`` beside this file has the sizes and the predicted times.

    Memory beyond arguments and results, in bytes, with s the size of the dtype and, on a CPU, R at most 256 and H' = H
    rounded up to a multiple of 64:

        GPU  min(B, R V s) + 24 R ceil(V / 16384) + 4 R (H + 6 + ceil(V / 2048)) with B = 2^25 up to 192 rows, 2^27
             beyond (and R at most 4096); and 72 R ceil(V / 16384) where there is noise
        CPU  T (2112 min(R, 64) + 16384 + 64 R + 32 H + (4 H' + 292) R) + (4 H + 4 H' + 92) R for T threads, and
             (4 H' + 292) R for each part that waits for a lower one whose thread was held up

    besides what :func:`linear_gumbel_argmax` takes for `rows` and for operands that autocast casts.

    Args:
        hidden: [N, H], float32, bfloat16 or float16.
        weight: [V, H], head and embedding in one, finite, of the same dtype unless autocast is on (then both are cast).
        bias: [V], of the weight's dtype; of the head alone.
        temperature, seeds, positions, step: one for all or [R], as in :func:`linear_gumbel_argmax`.
        suppress: bool [V], true where a token has no probability.
        statistics: "tempered", of softmax(l / T) (of softmax(l) where T is 0), or "raw", of softmax(l); `embedding` is
            of the same softmax.
        softcap: None, or c.
        rows: int64 [R], which hidden row each result reads; one out of range gives token -1. None: R = N.
        count: one-element integer tensor on the device: only the first `count` result rows are computed; the rest get
            token -1.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`ExpectedEmbedding`. No gradients.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: the sampling step of DiffusionGemma (transformers, google-deepmind/gemma), in one pass.

    Example:
        >>> hidden, embedding = torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> linear_expected_embedding(hidden, embedding).embedding
        tensor([[1., 1.]])
        >>> noise = dict(temperature=0.5, seeds=7, positions=0)
        >>> found = linear_expected_embedding(hidden + 1, embedding, softcap=30.0, **noise)
        >>> found.sampled.argmax, found.embedding.shape
        (tensor([2]), torch.Size([1, 2]))
    """
    hidden, weight, bias = check_head(hidden, weight, bias)
    device, n_hidden, vocab_size = hidden.device, len(hidden), len(weight)
    if rows is not None:
        _checks.tensor("rows", rows, dtypes=(torch.int64,), shape=("R",), device=device)
    noise = check_noise(temperature, seeds, positions, step, n_hidden if rows is None else len(rows), device)
    options = check_statistics(suppress, None, statistics, noise, vocab_size, device)
    del options["begin_suppress"]
    if count is not None:
        count = _checks.per_row("count", count, 1, torch.int64, device)
    options |= {"softcap": _checks.softcap(softcap), "rows": rows, "count": count}
    module = importlib.import_module(f"dllm_kernels.linear_expected_embedding.{_impl.choose(impl, device)}")
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        *sampled, embedding = module.linear_expected_embedding(hidden, weight, bias, **noise, **options)
    return ExpectedEmbedding(GumbelArgmax(*sampled), embedding)
