"""Tests, on a few tokens, which tokens a model's positions see; its class and its signature are not reliable.

A forward may accept `attention_mask` and ignore it, and a causal model trains and samples without an error, only
badly. So the engine tests, once per model, what it is about to rely on:

- positions see tokens on both sides (:func:`check_bidirectional`);
- a row of a batch does not see the other rows (:func:`why_not_batched`);
- padding at a row's end is not seen (:func:`why_not_padded`);
- a mask of four dimensions says who sees whom (:func:`check_block_mask`).

A column is seen by another if another token there changes the other's logits. Both forwards have one shape and one
mask, so what is not seen leaves every bit as it was, in any dtype: a masked key has the weight exp(-inf) = 0, or
exp(the dtype's lowest number), which is 0 too, and 0 times a finite value adds nothing. Only where a control row that
nothing was changed in differs as well (experts of a mixture run on another number of tokens, kernels that add in any
order) is a change compared with that noise.

A test of visibility takes two forwards of 5 rows of 4 tokens; a test of padding takes three of at most 2 rows. They run
in evaluation mode and leave the model and torch's random numbers as they were. A result is kept until weights, hooks,
configuration or attention of the model change (writes through `.data` are not noticed: torch does not count them).
Where logits are not finite, nothing is concluded and nothing is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of
from dllm.fast.deferred import no_deferral
from dllm.fast.head.split import output_head
from dllm.fast.head.use import structure_of
from dllm.fast.model import configuration, evaluation_mode, input_embedding, logits_of, position_limit, unwrapped

COLUMNS = 4  # of a row of a test; fewer where the model has fewer positions
_NOISE = 16  # a change must exceed that of the control row so many times: both are largest of a few
_ROUNDING = 64  # ulp of the largest logit that another algorithm of the same product may make
_REFUSALS = (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError, AssertionError)

_verdicts: weakref.WeakKeyDictionary[nn.Module, tuple[int, dict[Callable, Any]]] = weakref.WeakKeyDictionary()


class Visibility(NamedTuple):
    """What positions of unpadded rows see.

    left, right: whether a position sees tokens on that side; None where too little is seen to tell.
    rows: whether a row sees other rows of its batch.
    """

    left: bool | None
    right: bool | None
    rows: bool


def check_bidirectional(model: nn.Module, device: torch.device) -> None:
    """Check that a model is not causal.

    Args:
        model: wrapped or not; under FSDP every rank calls this.
        device: of its inputs.

    Raises:
        ValueError: positions see tokens on one side only.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(**size))
        >>> check_bidirectional(model, torch.device("cpu"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: masked diffusion needs a model that sees tokens on both sides; positions of LlamaForCausalLM ...
    """
    visibility = _verdict(model, device, _visibility)
    # a model that sees neither side treats each token alone, or sees too little of the others to tell
    if visibility is None or None in visibility or visibility.left == visibility.right:
        return
    raise ValueError(
        "masked diffusion needs a model that sees tokens on both sides; positions of "
        f"{_name(model)} do not see those on their {'left' if visibility.right else 'right'}: make a causal model "
        "bidirectional with dllm.models.bidirectional(model), before it is trained and whenever it is loaded"
    )


def why_not_batched(model: nn.Module, device: torch.device) -> str | None:
    """Why rows must be run one at a time, since they change in a batch; None where they need not."""
    visibility = _verdict(model, device, _visibility)
    return f"rows of a batch see each other in {_name(model)}" if visibility is not None and visibility.rows else None


def why_not_padded(model: nn.Module, device: torch.device) -> str | None:
    """Why rows may not be padded on the right beside `attention_mask` [B, L], 0 where a row is padded; None where they
    may: then padding is not seen, and a padded row's logits are those of the row alone, as far as rounding goes."""
    return _verdict(model, device, _padding)


def check_block_mask(model: nn.Module, device: torch.device) -> None:
    """Check that `attention_mask` [B, 1, queries, keys], bool, says who sees whom.

    Raises:
        ValueError: a position sees more than it is shown, or less, or the forward takes no such mask.
    """
    if (why := _verdict(model, device, _blocks)) is not None:
        raise ValueError(why)


@torch.no_grad()
def visible_keys(model: nn.Module, device: torch.device, **inputs: Any) -> Tensor | None:
    """Which keys a query sees, bool [n, n], in a row of :func:`probe_rows` tokens; None where that cannot be
    determined.

    Args:
        model: wrapped or not; under FSDP every rank calls this.
        device: of its inputs.
        inputs: what the model is given besides tokens, of 1 + n rows.
    """
    with _at_rest(_inner(model), device):
        probe = Probe(model, device)
        if len(probe.tokens) == 0:
            return None
        change = Change.of(*(probe(tokens, **inputs) for tokens in probe.each_changed()))
    return None if change is None else change.seen[1:].T


def forget(model: nn.Module) -> None:
    """Discard the results for a model. Ranks that share a model must run the same forwards, also where one of them has
    tested it alone."""
    _verdicts.pop(_inner(model), None)


class Probe:
    """Runs a model on a few tokens, as it is without torch.compile.

    tokens, others: int64 [n], a token for each column and another one, neither of them padding; none where the
        vocabulary or the positions are too few.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.name = getattr(model, "_orig_mod", model), _name(model)
        rows = probe_rows(_inner(model))
        self.tokens, self.others = (torch.tensor(row, dtype=torch.int64, device=device) for row in rows)

    def __call__(self, tokens: Tensor, **inputs: Any) -> Tensor:
        """Logits [B, L, V], 0 where a token can never be."""
        logits = logits_of(self.model(input_ids=tokens, **inputs))
        return logits.masked_fill(logits == -torch.inf, 0)

    def each_changed(self) -> tuple[Tensor, Tensor]:
        """Rows [1 + n, n], and the same with another token in column i - 1 of row i; row 0 is the control."""
        before = self.tokens.expand(1 + len(self.tokens), -1)
        after = before.clone()
        after[1:].diagonal().copy_(self.others)
        return before, after


class Change(NamedTuple):
    """How other tokens changed logits [B, L, V]; row 0 had none.

    seen: bool [B, L], columns whose logits changed by far more than noise.
    above_noise: bool [B, L], those that changed by more than noise.
    noise: float, the largest change in row 0.
    scale: float, the largest logit.
    """

    seen: Tensor
    above_noise: Tensor
    noise: float
    scale: float

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> Change | None:
        """None where a logit is not finite."""
        if not bool(before.isfinite().all() and after.isfinite().all()):
            return None
        changed, size = (before != after).any(-1), (after.float() - before.float()).abs().amax(-1)
        noise, scale = float(size[0].max()), float(before.abs().max())
        return cls(changed & (size >= _NOISE * noise), changed & (size >= noise), noise, scale)


def _visibility(probe: Probe) -> tuple[Visibility | None, bool]:
    columns = len(probe.tokens)
    if columns == 0:
        return None, True
    before, after = map(probe, probe.each_changed())
    change = Change.of(before, after)
    if change is None:
        return None, False
    rows = change.noise > _ROUNDING * rounding_error(probe.model, before) * change.scale
    seen = change.seen[1:]  # [key, query]
    return Visibility(*(_sees(seen, side) for side in (1, -1)), rows), True


def _sees(seen: Tensor, side: int) -> bool | None:
    """Whether queries see keys on one side (1: the left): all neighbours, or none at all; None between the two."""
    if len(seen) < 2:
        return None
    if bool(seen.diagonal(side).all()):
        return True
    return None if bool((seen.triu(1) if side > 0 else seen.tril(-1)).any()) else False


def _padding(probe: Probe) -> tuple[str | None, bool]:
    """Two rows, of which the second ends one column earlier."""
    if len(probe.tokens) < 2:
        return None, True
    before = probe.tokens.repeat(2, 1)
    after, mask = before.clone(), torch.ones_like(before)
    after[1, -1], mask[1, -1] = probe.others[-1], 0
    try:
        logits, changed = (probe(rows, attention_mask=mask) for rows in (before, after))
    except _REFUSALS as error:
        return f"{probe.name} takes no attention_mask: {_first_line(error)}", True
    alone = probe(before[1:, :-1])
    change = Change.of(logits, changed)
    if change is None or not bool(alone.isfinite().all()):
        return None, False
    if bool(change.seen[1, :-1].any()):
        return f"padding is seen in {probe.name}, whatever attention_mask says", True
    # another shape rounds otherwise, far below the root of a rounding error
    apart = float((logits[1, :-1].float() - alone[0].float()).abs().max())
    if apart > rounding_error(probe.model, logits) ** 0.5 * change.scale:
        return f"logits of {probe.name} differ by up to {apart:.3g} between a padded row and the row alone", True
    return None, True


def _blocks(probe: Probe) -> tuple[str | None, bool]:
    """Blocks of two columns, which see no later one."""
    columns = len(probe.tokens)
    if columns < COLUMNS:
        return None, True
    place = torch.arange(columns, device=probe.tokens.device)
    shown = place[None, :] // 2 <= place[:, None] // 2  # [query, key]
    given = dict(
        attention_mask=shown.expand(1 + columns, 1, -1, -1), position_ids=place.expand(1 + columns, -1).contiguous()
    )
    rule = "attention_mask [B, 1, queries, keys] must say what a position sees"
    remedy = "dllm.models.bidirectional makes causal models do so"
    try:
        before, after = (probe(tokens, **given) for tokens in probe.each_changed())
    except _REFUSALS as error:
        return f"{rule}; {probe.name} takes no such mask ({_first_line(error)}): {remedy}", True
    change = Change.of(before, after)
    if change is None:
        return None, False
    # a later column of its own block is what a causal model does not see
    if bool((change.seen[1:].T & ~shown).any()) or not bool(change.above_noise[2, 0]):
        return f"{rule}, and nothing else; in {probe.name} it does not: {remedy}", True
    return None, True


@torch.no_grad()
def _verdict(model: nn.Module, device: torch.device, find: Callable[[Probe], tuple[Any, bool]]) -> Any:
    """The result of `find` for a model, cached where `find` calls it reliable."""
    inner = _inner(model)
    state = _state(inner, device)
    known, found = _verdicts.get(inner, (None, {}))
    if known != state:
        found = {}
    if find not in found:
        with _at_rest(inner, device):
            verdict, reliable = find(Probe(model, device))
        if not reliable:
            return verdict
        found[find] = verdict
        _verdicts[inner] = state, found
    return found[find]


@contextmanager
def _at_rest(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run without dropout and without deferred logits; then restore the model's modes and the random numbers."""
    devices = [device] if device.type == "cuda" else []
    with no_deferral(), evaluation_mode(model), torch.random.fork_rng(devices):
        yield


def _state(model: nn.Module, device: torch.device) -> int:
    """A hash of everything that may change what a model sees."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    head = output_head(model)  # another thread may be replacing its forward
    around = tuple(structure_of(module) for module in model.modules() if module is not head)
    weights = tuple(_mark(weight) for weight in model.parameters())
    return hash((str(device), autocast, attention_of(model), configuration(model), around, weights))


def _mark(weight: Tensor) -> tuple:
    """A fingerprint of a weight, which changes when it is written or replaced."""
    try:
        address = weight.data_ptr()
    except RuntimeError:  # of weights that are spread over ranks
        address = id(weight)
    return address, weight.dtype, weight.device, 0 if weight.is_inference() else weight._version


def rounding_error(model: nn.Module, logits: Tensor) -> float:
    """The relative error of a rounding in the coarsest dtype that the model's products may be taken in: of its weights,
    of autocast, or of numbers that were cast to the logits' dtype afterwards, as every one of them shows.

    Example:
        >>> rounding_error(nn.Linear(2, 2), torch.tensor([1.0, 0.1])) == 2**-23
        True
        >>> rounding_error(nn.Linear(2, 2), torch.tensor([1.0, 0.1]).bfloat16().float()) == 2**-7
        True
    """
    dtypes = {logits.dtype, *(weight.dtype for weight in model.parameters() if weight.is_floating_point())}
    dtypes |= {
        half for half in (torch.bfloat16, torch.float16) if torch.equal(logits.to(half).to(logits.dtype), logits)
    }
    if torch.is_autocast_enabled(logits.device.type):
        dtypes.add(torch.get_autocast_dtype(logits.device.type))
    coarse = {"high": 2.0**-10, "medium": 2.0**-7}.get(torch.get_float32_matmul_precision(), 0.0)
    return max(coarse, *(torch.finfo(dtype).eps for dtype in dtypes))


def probe_rows(model: nn.Module) -> tuple[list[int], list[int]]:
    """Two rows of tokens from all over the vocabulary, none of them padding, that differ in every column: 4 columns, or
    as many as the model has positions; none where the vocabulary is too small for that.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> probe_rows(LlamaForCausalLM(LlamaConfig(**size)))
        ([0, 1, 2, 3], [4, 5, 6, 7])
    """
    positions, _ = position_limit(model)
    columns = COLUMNS if positions is None else min(COLUMNS, positions)
    table = model.get_input_embeddings() if callable(getattr(model, "get_input_embeddings", None)) else None
    size = getattr(table, "num_embeddings", None) or len(input_embedding(model))
    special = {getattr(table, "padding_idx", None), getattr(getattr(model, "config", None), "pad_token_id", None)}
    special = sorted(token for token in special if isinstance(token, int) and 0 <= token < size)
    usable = size - len(special)
    if usable < 2:
        return [], []
    tokens = [number * usable // (2 * columns) for number in range(2 * columns)]
    for token in special:
        tokens = [other + (other >= token) for other in tokens]
    return tokens[:columns], tokens[columns:]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _inner(model: nn.Module) -> nn.Module:
    """The model itself, without what distributes or compiles it."""
    inner = unwrapped(getattr(model, "_orig_mod", model))
    return getattr(inner, "_orig_mod", inner)


def _name(model: nn.Module) -> str:
    return type(_inner(model)).__name__
