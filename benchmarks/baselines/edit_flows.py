"""dLLM 0.1's Edit Flows: the loss of a training step, which aligns pairs in Python, and a sampler of one text.

The published trainer does all of this in every step, and so does the loss here:

- pairs are aligned inside the loss, by tables of costs and of moves, lists of lists that Python fills cell by cell;
- texts x_t and edits are made column by column, and for each edit the tokens before its column are counted anew;
- both heads give the logits of all positions, and log_softmax runs over all of both;
- the log-probabilities of edits are indexed sample by sample, so that each backward makes a gradient [B, L, V];
- zero times the sums of all outputs is added, which gives every head a gradient in every step (for ZeRO).

The published sampler runs one text at a time through all ceil(1 / tau) steps, computes the logits of all positions in
each step that follows an edit, reuses them after a step without one, and applies edits token by token. Its schedule is
linear, and its weight has no bound.

The published models extend a masked language model and begin with its whole forward, so that they compute the logits of
its own LM head as well, which nobody reads: :func:`compute_unused_logits`.

Where this code is not the published one, it does less: one pass over the tokens of a text in place of three when edits
are applied, no range check of each edit, no bias of the unused head, and ModernBERT's prediction head runs once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dllm.core.schedulers import BaseKappaScheduler

BLANK = -1
SMALLEST_RATE = 1e-12
SUREST = 1 - 1e-6

Pair = tuple[list[int], list[int]]
Mark = Callable[[str], None]


class Edit(NamedTuple):
    """An edit of a text: its kind, SUB, DEL or INS; the position; and the token, None for a deletion."""

    kind: str
    position: int
    token: int | None


class Draws(NamedTuple):
    """The random numbers of a loss: U of the time, float32 [B], and of the columns of alignments, [B, at least C]."""

    times: Tensor
    columns: Tensor | Sequence[Tensor]


def align(x0: Sequence[int], x1: Sequence[int]) -> Pair:
    """The alignment with the fewest edits, by Needleman and Wunsch: z_0 and z_1, with BLANK.

    On the way back a pair is preferred to a token of x_0 alone, and that to a token of x_1 alone.

    Example:
        >>> align([7, 5, 5], [7, 5, 8, 9])
        ([7, 5, -1, 5], [7, 5, 8, 9])
    """
    n, m = len(x0), len(x1)
    cost = [[0] * (m + 1) for _ in range(n + 1)]
    move = [[""] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        cost[i][0], move[i][0] = i, "delete"
    for j in range(1, m + 1):
        cost[0][j], move[0][j] = j, "insert"
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            pair = cost[i - 1][j - 1] + (x0[i - 1] != x1[j - 1])
            delete, insert = cost[i - 1][j] + 1, cost[i][j - 1] + 1
            best = min(pair, delete, insert)
            cost[i][j] = best
            move[i][j] = "pair" if best == pair else "delete" if best == delete else "insert"
    z0, z1, i, j = [], [], n, m
    while i or j:
        made = move[i][j]
        i -= made != "insert"
        j -= made != "delete"
        z0.append(BLANK if made == "insert" else x0[i])
        z1.append(BLANK if made == "delete" else x1[j])
    return z0[::-1], z1[::-1]


def edits_left(zt: Sequence[int], z1: Sequence[int]) -> list[Edit]:
    """The edits that make z_1 of z_t, one for each column in which they differ.

    Example:
        >>> edits_left([5, -1, 6, 7], [5, 8, 6, -1])
        [Edit(kind='INS', position=0, token=8), Edit(kind='DEL', position=2, token=None)]
    """
    edits = []
    for column, (shown, wanted) in enumerate(zip(zt, z1, strict=True)):
        if shown == wanted:
            continue
        before = 0
        for token in zt[:column]:
            before += token != BLANK
        if shown == BLANK:
            edits.append(Edit("INS", max(before - 1, 0), wanted))
        elif wanted == BLANK:
            edits.append(Edit("DEL", before, None))
        else:
            edits.append(Edit("SUB", before, wanted))
    return edits


def loss(
    model: nn.Module,
    pairs: Mapping[str, Sequence[Sequence[int]]],
    *,
    scheduler: BaseKappaScheduler,
    pad_id: int,
    time_epsilon: float = 1e-3,
    max_w: float = 20.0,
    normalize_per_position: bool = True,
    draws: Draws | None = None,
    mark: Mark = lambda part: None,
) -> Tensor:
    """The loss of a batch of pairs: the mean over samples of w / |x_1| (sum of rates - log rates and tokens of edits).

    Args:
        model: gives `sub_logits`, `ins_logits` [B, L, V] and `sub_rate_hat`, `del_rate_hat`, `ins_rate_hat` [B, L].
        pairs: `x0_ids` and `x1_ids`, lists of token ids.
        scheduler: kappa(t).
        draws: None for torch's generator.
        mark: called with "edits" before the model runs and with "heads" when the loss is there.

    Source: Edit Flows (arXiv:2506.09018), as dLLM 0.1 has it.
    """
    aligned = [align(x0, x1) for x0, x1 in zip(pairs["x0_ids"], pairs["x1_ids"], strict=True)]
    draws = Draws(torch.rand(len(aligned)), [torch.rand(len(z0)) for z0, _ in aligned]) if draws is None else draws
    times = (1 - time_epsilon) * draws.times
    weight = scheduler.kappa_derivative(times) / (1 - scheduler.kappa(times) + 1e-6)
    weight = weight.clamp(max=max_w)
    shown = []
    for (z0, z1), kappa, u in zip(aligned, scheduler.kappa(times).tolist(), draws.columns, strict=True):
        chosen = u < kappa
        shown.append([b if chosen[column] else a for column, (a, b) in enumerate(zip(z0, z1, strict=True))])
    edits = [edits_left(zt, z1) for zt, (_, z1) in zip(shown, aligned, strict=True)]
    texts = [torch.tensor([token for token in zt if token != BLANK]) for zt in shown]
    tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
    real = torch.arange(tokens.shape[1]) < torch.tensor([[len(text)] for text in texts])
    mark("edits")
    output = model(input_ids=tokens, attention_mask=real.long())
    rates = {kind: output[f"{kind.lower()}_rate_hat"] for kind in ("SUB", "DEL", "INS")}
    log_q = {kind: F.log_softmax(output[f"{kind.lower()}_logits"], dim=-1) for kind in ("SUB", "INS")}
    untouched = sum(part.sum() * 0.0 for part in (*rates.values(), *log_q.values()))
    lengths = torch.tensor([float(len(x1)) for x1 in pairs["x1_ids"]])
    scale = weight / lengths if normalize_per_position else weight
    survival = (sum(rates.values()) * real.float()).sum(1)
    surprise = torch.stack([_surprise(sample, left, rates, log_q) for sample, left in enumerate(edits)])
    result = (scale * survival).mean() + (scale * surprise).mean() + untouched
    mark("heads")
    return result


def _surprise(sample: int, edits: Sequence[Edit], rates: Mapping[str, Tensor], log_q: Mapping[str, Tensor]) -> Tensor:
    """Minus the log rates and log-probabilities of a sample's edits."""
    total = torch.zeros(())
    for kind in ("SUB", "INS", "DEL"):
        mine = [edit for edit in edits if edit.kind == kind]
        if not mine:
            continue
        positions = torch.tensor([edit.position for edit in mine])
        logs = rates[kind][sample, positions].clamp(min=SMALLEST_RATE).log()
        if kind != "DEL":
            logs = logs + log_q[kind][sample, positions, torch.tensor([edit.token for edit in mine])]
        total = total - logs.sum()
    return total


def compute_unused_logits(backbone: nn.Module, mark: Mark = lambda part: None) -> RemovableHandle:
    """Make a backbone compute the logits of its LM head, tied to its embedding, in every forward, and drop them.

    Args:
        backbone: its output's `logits` are what its LM head would read, [B, L, H].
        mark: called with "unused" when they are computed.

    Returns:
        A handle whose `remove` undoes it.
    """

    def compute(module: nn.Module, args: tuple, output: Any) -> None:
        F.linear(output.logits, module.get_input_embeddings().weight)
        mark("unused")

    return backbone.register_forward_hook(compute)


class Sampled(NamedTuple):
    """A text, int64 [n], with how many steps were taken and how often the model ran."""

    tokens: Tensor
    steps: int
    forwards: int


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: Sequence[int],
    *,
    mask_id: int,
    mask_length: int = 128,
    tau: float = 0.01,
    time_epsilon: float = 1e-3,
    temperature: float = 0.0,
    noise: Callable[[int, int], Tensor] | None = None,
    mark: Mark = lambda part: None,
) -> Sampled:
    """Continue one prompt, which begins with BOS, from `mask_length` masks.

    Args:
        model: as of :func:`loss`.
        noise: (step, n) -> uniform numbers [3, n] of a step: whether a token changes, whether it is deleted then, and
            whether one is inserted behind it. None for torch's generator.
        mark: called with "heads" when the model has run, and with "edits" when the edits are made.

    Source: Edit Flows (arXiv:2506.09018), as dLLM 0.1 has it.
    """
    tokens, output, forwards, t = torch.tensor([*prompt, *[mask_id] * mask_length]), None, 0, 0.0
    steps = math.ceil(1 / tau)
    for step in range(steps):
        if t >= 1 - time_epsilon:
            return Sampled(tokens, step, forwards)
        if output is None:
            output = model(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None])
            forwards += 1
            mark("heads")
        uniform = torch.rand(3, len(tokens)) if noise is None else noise(step, len(tokens))
        tokens, changed = leap(tokens, output, tau / (1 - t + 1e-6), uniform, len(prompt), temperature)
        output = None if changed else output
        mark("edits")
        t += tau
    return Sampled(tokens, steps, forwards)


def leap(
    tokens: Tensor,
    output: Mapping[str, Any],
    weight: float,
    uniform: Tensor,
    protected: int,
    temperature: float = 0.0,
) -> tuple[Tensor, bool]:
    """The text after one step, and whether it has changed.

    Args:
        tokens: int64 [n].
        output: of the model for this text alone.
        weight: w(t) tau.
        uniform: float32 [3, n], as `noise` of :func:`sample` gives them.
        protected: tokens of the prompt. None of them is changed, and only behind the last one is a token inserted.
    """
    substitute, delete, insert = (output[f"{kind}_rate_hat"][0].clone() for kind in ("sub", "del", "ins"))
    substitute[:protected] = delete[:protected] = insert[: max(protected - 1, 0)] = 0.0
    changes = uniform[0] < ((substitute + delete) * weight).clamp(0.0, SUREST)
    deletes = changes & (uniform[1] < delete / (substitute + delete + 1e-8))
    inserts = uniform[2] < (insert * weight).clamp(0.0, SUREST)
    after: list[int] = []
    for position in range(len(tokens)):
        if changes[position] and not deletes[position]:
            after.append(_token(output["sub_logits"][0, position], temperature))
        elif not deletes[position]:
            after.append(int(tokens[position]))
        if inserts[position]:
            after.append(_token(output["ins_logits"][0, position], temperature))
    return torch.tensor(after), bool((changes | inserts).any())


def _token(logits: Tensor, temperature: float) -> int:
    """A token drawn from logits [V]."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1))
