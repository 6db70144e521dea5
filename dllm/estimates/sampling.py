"""Estimate of sampling before a model is loaded: weights, KV cache, and memory, FLOPs and bytes of a denoising step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.flop_counter import FlopCounterMode

from dllm.configs import ModelArguments
from dllm.estimates.costs import CacheCost, Canvas, SamplingEstimate, StepCost
from dllm.estimates.experts import Mixture, mixture_of
from dllm.estimates.fake import NEEDS_VALUES, LiveBytes, check_size, model_on_meta, replace_by_fake_tensors, total_bytes
from dllm.fast.attention import attention_of
from dllm.fast.head.split import SplitModel, output_head
from dllm.fast.model import block_size_of, check_positions, input_embedding, is_diffusion_gemma, right_shift_of
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.cache import COLUMN_MULTIPLE, KeyValueCache
from dllm.fast.sampling.cache_layout import CacheLayout, LayoutRecorder
from dllm.fast.sampling.passes import Pass, run
from dllm.fast.sampling.plan import plan
from dllm.fast.sampling.schedule import Block, Schedule
from dllm.fast.sampling.state import Policy, State

CACHES = (None, "block", "dual")
# Bytes of logits that the head keeps at once, at most (dllm_kernels.linear_gumbel_argmax).
_LOGITS = 2**27


def estimate_sampling(
    config: transformers.PretrainedConfig, model_args: ModelArguments, canvas: Canvas
) -> SamplingEstimate:
    """Estimate memory, FLOPs and bytes of sampling with a model of this configuration.

    The model's body runs on fake tensors (:mod:`dllm.estimates.fake`), by the code and over the columns of a real step.
    The head is counted by formula, for N candidates (all positions of a block in each row), hidden size H, vocabulary
    V and s bytes per value:

        memory  N H s for each canvas, and logits for a part of the candidates, min(N V s, 128 MiB)
        FLOPs   2 N H V
        bytes   V H s

    A step reads every weight of the body once, of routed experts the share min(1, T k / E) for T tokens with k of E
    experts each, and with a cache the keys and values that its attention sees. An untied input embedding is read in T
    rows only, which are counted. Reads and writes of activations are not counted.

    Memory is that of the model's own operators, so without fusion by a compiler. It assumes that the head is one linear
    layer, that a block is full of masks, and that blocks begin where the prompt ends.

    Args:
        config: configuration of the model.
        model_args: its dtype and attention.
        canvas: the rows.

    Raises:
        ValueError: transformers has no such model; the rows exceed its table of positions; the model attends by blocks
            of another size; its forward reads values, which fake tensors do not have.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> from dllm.fast.sampling.inputs import Settings
        >>> from dllm.models import get_config
        >>> settings = Settings(
        ...     steps=4, gen_length=8, block_length=4, temperature=0, cfg_scale=0, remasking="low_confidence"
        ... )
        >>> arguments = ModelArguments(model_name_or_path=str(SHIPPED), dtype="float32")
        >>> found = estimate_sampling(get_config(arguments), arguments, Canvas(batch=1, prompt=8, settings=settings))
        >>> found.parameters, [cost.cache for cost in found.caches]
        (2646656, [None])
    """
    model = model_on_meta(config, model_args).eval().requires_grad_(False)
    if is_diffusion_gemma(model):
        raise ValueError(f"the loop of model cards fills masks, and a {type(model).__name__} has none: no estimate")
    check_positions(model, canvas.columns, "prompt and gen_length must fit")
    check_size(canvas.batch, canvas.columns, "prompt and gen_length")
    own_size, size = block_size_of(model), canvas.settings.block_length
    if own_size not in (None, size):
        raise ValueError(f"block_length must be {own_size}, by which the model attends, got {size}")
    with torch.no_grad(), _values_refused(model), FakeTensorMode() as mode:
        replace_by_fake_tensors(model)
        split = _FakeSplit(model)
        layout = _layout(split)
        caches = CACHES if layout else (None,)
        costs = [
            _cost(split, canvas, cache, layout, mode)
            for cache in caches
            if own_size is None or cache != "dual"  # which needs attention to whole rows
        ]
    parameters, mixture = sum(weight.numel() for weight in model.parameters()), mixture_of(model)
    unused = 0 if mixture is None else round(mixture.parameters * (1 - mixture.share(1)))
    return SamplingEstimate(parameters, parameters - unused, total_bytes(model.parameters()), tuple(costs))


@contextlib.contextmanager
def _values_refused(model: nn.Module) -> Iterator[None]:
    """Turn what fake tensors raise where a forward reads values into a ValueError."""
    try:
        yield
    except NEEDS_VALUES as error:
        name, attention = type(model).__name__, attention_of(model)
        raise ValueError(
            f"{name} cannot be estimated under {attention} attention and transformers {transformers.__version__}: "
            "its forward depends on the values of its inputs"
        ) from error


class _FakeSplit(SplitModel):
    """A model of fake tensors, split at its head; what the model does with its head cannot be found without values."""

    def __init__(self, model: nn.Module):
        self.model, self.head, self.kind = model, output_head(model), "linear"
        self.tail, self.body_context = None, contextlib.nullcontext


def _layout(split: SplitModel) -> CacheLayout | None:
    """What the attention layers store; None if they use no cache."""
    recorder, tokens = LayoutRecorder(), torch.zeros(1, 4, dtype=torch.int64)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    try:
        split.body(tokens, mask, position_ids=torch.arange(4)[None], past_key_values=recorder)
        return recorder.layout(split.model)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return None


def _cost(
    split: SplitModel, canvas: Canvas, cache: str | None, layout: CacheLayout | None, mode: FakeTensorMode
) -> CacheCost:
    """The cost of a call with one kind of cache."""
    settings = canvas.settings
    shift = bool(right_shift_of(split.model))
    policy = Policy(
        mask_id=0,
        window=settings.block_length,
        block_length=settings.block_length,
        cfg_scale=settings.cfg_scale,
        right_shift=shift,
        block_causal=settings.block_length if cache == "block" else block_size_of(split.model),
        cache=cache,
    )
    state, kept = _state(canvas, policy, mode), None
    if cache is not None:
        head = split.head.weight
        kept = KeyValueCache(
            layout,
            rows=canvas.batch * _canvases(policy),
            columns=-(-canvas.columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE,
            device=torch.device("cpu"),
            shift_column=(head.shape[1], head.dtype) if policy.keeps_shift_column else None,
        )
    steps = [
        _step(split, state, policy, kept, name, times, passes)
        for name, times, passes in _kinds(canvas, policy, state)
        if times > 0
    ]
    return CacheCost(cache, 0 if kept is None else kept.bytes, tuple(steps))


def _kinds(canvas: Canvas, policy: Policy, state: State) -> Iterator[tuple[str, int, list[Pass]]]:
    """The kinds of steps of a call: name, how often, and the passes that one runs."""
    blocks = canvas.settings.blocks
    steps = blocks * len(canvas.settings.transfers())

    def passes(starting_rows: int, opening: int | None = None) -> list[Pass]:
        return plan(state, policy, opening=opening, starting_rows=starting_rows, exact=False)

    if policy.cache is None:
        yield "each", steps, passes(0)
        return
    if policy.cache == "block":
        yield "first of all", 1, passes(canvas.batch, opening=canvas.prompt + policy.window)
        yield "first of a block", blocks - 1, passes(canvas.batch)
    else:
        yield "first of a block", blocks, passes(canvas.batch)
    yield "other", steps - blocks, passes(0)


def _state(canvas: Canvas, policy: Policy, mode: FakeTensorMode) -> State:
    """The state of the rows as fake tensors: that of one row, so many times."""
    columns, settings = canvas.columns, canvas.settings
    size = settings.block_length
    starts = range(canvas.prompt, columns, size)
    row = [Block(start, start + size, settings.transfers()) for start in starts]
    with unset_fake_temporarily():
        tokens = torch.zeros(1, columns, dtype=torch.int64)
        lengths = torch.full((1,), columns)
        state = DenoisingBatch(
            tokens=tokens,
            given=tokens.bool(),
            first=lengths - settings.gen_length,
            length=lengths,
            seeds=lengths,
            schedule=Schedule.of([row], torch.device("cpu")),
        ).state(policy)
    for name, tensor in state.tensors().items():
        setattr(state, name, mode.from_tensor(tensor))
    return state.rows(torch.zeros(canvas.batch, dtype=torch.int64))


def _step(
    split: SplitModel,
    state: State,
    policy: Policy,
    cache: KeyValueCache | None,
    name: str,
    times: int,
    passes: list[Pass],
) -> StepCost:
    """Run the body of one step, and add the head."""
    with LiveBytes() as memory, FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        hidden = run(split, state, policy, cache, passes).hidden
    (vocabulary, size), batch = split.head.weight.shape, len(state.tokens)
    rows, each = batch * policy.block_length, split.head.weight.element_size()
    head = len(hidden) * rows * size * each + min(rows * vocabulary * each, _LOGITS)
    tokens = _canvases(policy) * batch * sum(window.width for window in passes)
    return StepCost(
        name=name,
        times=times,
        columns=max(window.width for window in passes),
        memory=max(memory.peak, memory.live + head),
        read=_weights_read(split, tokens) + _cache_read(cache, passes),
        flops=counter.get_total_flops() + 2 * rows * size * vocabulary,
    )


def _weights_read(split: SplitModel, tokens: int) -> int:
    """Bytes of the weights that a step with so many tokens reads."""
    table = input_embedding(split.model)
    read = total_bytes(split.model.parameters())
    if table is not split.head.weight:
        read += (min(tokens, len(table)) - len(table)) * table.shape[1] * table.element_size()
    mixture: Mixture | None = mixture_of(split.model)
    return read if mixture is None else read - round(mixture.bytes * (1 - mixture.share(tokens)))


def _cache_read(cache: KeyValueCache | None, passes: list[Pass]) -> int:
    """Bytes of keys and values that attention reads from the cache."""
    if cache is None:
        return 0
    per_column = total_bytes(cache.keys + cache.values) // (cache.columns + 1)
    return sum(per_column * window.visible for window in passes if window.visible is not None)


def _canvases(policy: Policy) -> int:
    return 1 if policy.cfg_scale == 0 else 2


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """2 B heads Lq Lk (Dk + Dv), given the shapes of queries, keys and values."""
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[2] * (size + value[3])


# Attention in one operator on the CPU, which torch's counter does not know.
_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
