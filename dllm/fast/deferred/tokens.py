"""argmax of deferred logits, and probabilities of chosen tokens: the operations of a sampling loop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.deferred.loss import nll_of_rows
from dllm.fast.deferred.tensor import DeferredLogits
from dllm.fast.deferred.views import serves, within
from dllm_kernels import gumbel_argmax

CHUNK_ROWS = {"cpu": 256}  # rows of logits that exist at a time; elsewhere:
_MANY_ROWS = 2048


class ArgmaxRecord(NamedTuple):
    """Tokens of an argmax and their log-probabilities, for the softmax and gather that usually follow."""

    rows: Tensor
    tokens: Tensor
    version: int
    log_prob: Tensor


@serves(torch.argmax, Tensor.argmax)
def _argmax(input, dim=None, keepdim=False):
    plan = input.plan
    if plan.transform or not within(input.dim(), dim) or dim % input.dim() != plan.axis:
        return NotImplemented
    head_inputs, rows = plan.head_inputs.check(), plan.rows.flatten()
    tokens, log_probs = [rows.new_empty(0)], [torch.empty(0, dtype=torch.float64, device=rows.device)]
    for logits in head_inputs.chunks(rows, _chunk(rows)):
        tokens.append(gumbel_argmax(logits).token.clamp_(min=0))  # a row of NaN: torch.argmax says 0 too
        if not torch.is_grad_enabled():
            log_probs.append(_log_prob(logits, tokens[-1]))
    tokens = torch.cat(tokens).view(plan.rows.shape)
    if not torch.is_grad_enabled() and not tokens.is_inference():
        head_inputs.argmax_records[:] = [ArgmaxRecord(plan.rows, tokens, tokens._version, torch.cat(log_probs))]
    return tokens.unsqueeze(plan.axis) if keepdim else tokens


@serves(torch.gather, Tensor.gather)
def _gather(input, dim, index):
    if not isinstance(input, DeferredLogits) or input.plan.transform is None:
        return NotImplemented
    plan = input.plan
    expected = [*plan.rows.shape]
    expected.insert(plan.axis, 1)
    if (
        not within(input.dim(), dim)
        or dim % input.dim() != plan.axis
        or list(index.shape) != expected
        or index.dtype != torch.int64
    ):
        return NotImplemented
    if torch.is_grad_enabled() and input.requires_grad:
        log_prob = -nll_of_rows(input, index.squeeze(plan.axis))
    else:
        log_prob = _known(plan.head_inputs.check().argmax_records, plan.rows, index)
        if log_prob is None:
            log_prob = _chosen(input, index.flatten())
    chosen = (log_prob.exp() if plan.transform == "softmax" else log_prob).to(plan.dtype)
    return chosen.view(expected)


def _chosen(tensor: DeferredLogits, tokens: Tensor) -> Tensor:
    """float64 [n], log-probability of a token of each row."""
    head_inputs, rows = tensor.plan.head_inputs, tensor.plan.rows.flatten()
    size, chunks = _chunk(rows), [torch.empty(0, dtype=torch.float64, device=rows.device)]
    for logits, chosen in zip(
        head_inputs.chunks(rows, size), tokens.split(size), strict=False
    ):  # no rows: one empty token
        chunks.append(_log_prob(logits, chosen))
    return torch.cat(chunks)


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits [n, V]) at tokens [n], float64: with m the largest logit of a row,

        (l_token - m) - log(e^(l_token - m) + S),    S = sum over the other tokens of e^(l - m)

    Kept apart from S, a token that takes nearly all probability still tells how little it leaves, though the sums are
    in float32: a loop that compares float64 confidences sees what it would have seen. Overwrites the logits.
    """
    logits = logits.float()
    below = logits.sub_(logits.amax(-1, keepdim=True))
    own = below.gather(-1, tokens[:, None])
    rest = below.exp_().scatter_(-1, tokens[:, None], 0.0).sum(-1).double()
    own = own.squeeze(-1).double()
    return own - torch.log1p(torch.expm1(own) + rest)


def _known(records: list[ArgmaxRecord], rows: Tensor, index: Tensor) -> Tensor | None:
    """The log-probabilities that an argmax left, where the index is its very tokens, unchanged since."""
    for entry in records:
        same = index.data_ptr() == entry.tokens.data_ptr() and index.numel() == entry.tokens.numel()
        if same and rows is entry.rows and index.is_contiguous() and entry.tokens._version == entry.version:
            return entry.log_prob
    return None


def _chunk(rows: Tensor) -> int:
    return CHUNK_ROWS.get(rows.device.type, _MANY_ROWS)
