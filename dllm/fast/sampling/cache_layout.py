"""What a model's attention layers store in a KV cache, found by small forwards of the model itself.

Which columns a step writes is decided in :mod:`dllm.fast.sampling.passes`.
"""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.attention import is_flash
from dllm.fast.deferred import no_deferral
from dllm.fast.head.split import SplitModel
from dllm.fast.head.use import run_settings
from dllm.fast.model import checkpoints_activations

# A change counts if it exceeds that of an unchanged row this many times: both are maxima of few values.
_NOISE = 16

_layouts: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, tuple]] = weakref.WeakKeyDictionary()


class Layer(NamedTuple):
    """What one attention layer stores per column. Under autocast keys and values may have different dtypes."""

    heads: int
    key_size: int
    value_size: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype


CacheLayout = tuple[Layer, ...]


class Found(NamedTuple):
    """What was found of a model.

    layout: what each attention layer stores.
    hidden: size and dtype of a hidden state.
    """

    layout: CacheLayout
    hidden: tuple[int, torch.dtype]


@torch.no_grad()
def find_layout(split: SplitModel) -> Found:
    """What the model's attention layers store per column. Found once per model and its settings.

    Raises:
        ValueError: the model uses no cache, or does not see exactly what a mask of four dimensions shows it.
    """
    eager = copy.copy(split)
    eager.model = getattr(split.model, "_orig_mod", split.model)  # torch.compile need not compile for these few tokens
    eager.body_context = nullcontext
    state = split.kind, run_settings(eager.model)
    known = _layouts.get(eager.model)
    if known is not None and known[0] == state:
        return known[1]
    with no_deferral():
        found, finite = _inspect(eager)
    if finite:
        _layouts[eager.model] = (state, found)
    return found


class LayoutRecorder:
    """A cache that stores nothing and records the shapes that it is given."""

    def __init__(self):
        self.layers: list[tuple[int, Layer]] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object):
        sizes = key_states.shape[1], key_states.shape[-1], value_states.shape[-1]
        self.layers.append((layer_idx, Layer(*sizes, key_states.dtype, value_states.dtype)))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def layout(self, model: nn.Module) -> CacheLayout:
        """What each attention layer stores, after a forward of the model.

        Raises:
            ValueError: an attention layer has called the cache not at all, twice, or out of order.
        """
        _check_order([index for index, _ in self.layers], model)
        return tuple(layer for _, layer in self.layers)


def _inspect(split: SplitModel) -> tuple[Found, bool]:
    """What was found, and whether the hidden states were finite: of NaN nothing can be concluded.

    The model runs the tokens 0 1 2 3 under a mask by which the first two see each other and the others see all. So the
    first one's hidden state must change with the second token and must not change with the last. Attention that takes
    no such mask sees all: then it must change with the last. Rows before and behind it, in which nothing is changed,
    measure noise: activations that are quantised with one scale for all rows change there too, and where experts of a
    mixture get another number of tokens, other rows are rounded otherwise.
    """
    name, device = type(split.model).__name__, next(split.model.parameters()).device
    block = torch.arange(4, device=device) // 2
    mask = (block[None, :] <= block[:, None]).expand(3, 1, -1, -1)
    if sees_all := is_flash(split.model):
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

    def first_column(*tokens: int) -> tuple[Tensor, LayoutRecorder]:
        recorder = LayoutRecorder()
        ids = torch.tensor([(0, 1, 2, 3), tokens, (0, 1, 2, 3)], device=device)
        positions = torch.arange(4, device=device).repeat(3, 1)
        hidden = split.body(ids, mask, position_ids=positions, past_key_values=recorder)
        return hidden[:, 0], recorder

    def changes_with(*tokens: int, noise: int) -> bool:
        before, change, behind = (first_column(*tokens)[0].float() - hidden.float()).abs().amax(1).tolist()
        return change > noise * max(before, behind)

    try:
        hidden, recorder = first_column(0, 1, 2, 3)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} keeps no cache that could be served: {reason}") from error
    layout = recorder.layout(split.model)
    finite = bool(hidden.isfinite().all())
    if finite and (changes_with(0, 1, 2, 1, noise=_NOISE) != sees_all or not changes_with(0, 2, 2, 3, noise=1)):
        raise ValueError(
            f"a position must see what attention_mask [B, 1, queries, keys] shows it and nothing else, later ones too; "
            f"{name} does not: dllm.models.bidirectional makes causal models do so"
        )
    return Found(layout, (hidden.shape[1], hidden.dtype)), finite


def _check_order(indices: list[int], model: nn.Module) -> None:
    """Check that each attention layer has called the cache once, in order.

    Raises:
        ValueError: it has not.
    """
    name = type(model).__name__
    if not indices:
        why = ""
        if checkpoints_activations(model):
            why = "; gradient checkpointing is on, and drops it until eval() is called"
        raise ValueError(
            f"{name} keeps no cache: no attention layer of it hands keys and values to past_key_values{why}"
        )
    if indices != list(range(len(indices))):
        raise ValueError(
            "every attention layer must hand its keys and values to past_key_values once, in order; "
            f"those of {name} that did: {indices}"
        )
