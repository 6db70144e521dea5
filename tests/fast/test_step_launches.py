"""What a denoising step launches on a GPU beside body and head, counted without one: tensors on the meta device, and
kernels that are named in place of being launched."""

import importlib.util
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.schedule import Block, Schedule
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.step import denoise_step
from dllm_kernels import GumbelArgmax, _impl

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not _impl.interpreting(), reason="needs TRITON_INTERPRET=1"
)

META = torch.device("meta")
STEP = ["_count_kernel", "_list_kernel", "_place_kernel", "_transfer_kernel", "_advance_kernel"]
# the offset of each row's hidden states, their gathering, and the width of the transfer's windows
OPERATORS = Counter(arange=1, index_select=1, full=1)


class Launching(TorchDispatchMode):
    """Counts operators that compute: neither views nor allocations."""

    NOT_LAUNCHED = ("empty", "new_empty", "empty_like", "empty_strided", "unbind", "split")

    def __init__(self):
        super().__init__()
        self.operators = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        is_view = any(result.alias_info and not result.alias_info.is_write for result in func._schema.returns)
        if not is_view and name not in self.NOT_LAUNCHED:
            self.operators[name] += 1
        return func(*args, **(kwargs or {}))


def head(hidden, weight, bias, **options):
    """Stands in for the head with sampling, and launches nothing."""
    empty = [torch.empty(len(hidden), dtype=torch.float32, device=META) for _ in GumbelArgmax._fields[1:]]
    return GumbelArgmax(torch.empty(len(hidden), dtype=torch.int64, device=META), *empty)


def launched(**options):
    """Operators and kernels of one step of four rows."""
    from triton.runtime.interpreter import InterpretedFunction

    policy = Policy(mask_id=9, window=8, block_length=4, impl="triton", **options)
    dtype = torch.int64 if policy.rule == "count" else torch.float32
    schedule = Schedule.of([[Block(0, 4, [1] * 4), Block(4, 8, [1] * 4)]] * 4, torch.device("cpu"), dtype)
    canvas, rows = torch.full((4, 8), 9), torch.zeros(4, dtype=torch.int64)
    batch = dict(tokens=canvas, given=canvas != 9, first=rows, length=rows + 8, seeds=rows)
    state = DenoisingBatch(**batch, schedule=schedule).state(policy)
    for name, tensor in state.tensors().items():
        setattr(state, name, tensor.to(META))
    split = SimpleNamespace(
        kind="linear",
        head=nn.Linear(16, 32, device=META),
        tail=None,
        body=lambda tokens, mask, read: torch.empty(*tokens.shape, 16, device=META),
    )
    kernels = []
    named = mock.patch.object(
        InterpretedFunction, "__getitem__", lambda kernel, grid: lambda **given: kernels.append(kernel.fn.__name__)
    )
    with torch.no_grad(), named, Launching() as watch:
        with mock.patch("dllm.fast.sampling.propose.linear_gumbel_argmax", head):
            denoise_step(split, state, policy, Clock(META, on=False))
    return watch.operators, kernels


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(threshold=0.9),
        dict(eos_id=3, eot_id=4),
        dict(factor=1.0, eos_id=3, stops_between_blocks=True, right_shift=True),
        dict(threshold=0.9, edit_threshold=0.5, edit_steps=3, eos_id=3),
    ],
    ids=lambda options: ", ".join(options) or "schedule",
)
def test_a_step_launches_five_kernels(options):
    operators, kernels = launched(**options)
    assert kernels == STEP
    assert operators == OPERATORS


def test_other_rules_launch_what_they_add():
    operators, kernels = launched(rule="bernoulli")
    assert kernels == [*STEP[:2], "_noise_kernel", *STEP[2:]] and operators == OPERATORS + Counter(neg=1)
    operators, kernels = launched(confidence="probability")
    assert kernels == STEP and operators == OPERATORS + Counter(exp=1)
    operators, kernels = launched(cfg_scale=1.0)  # the other canvas, and its hidden states
    assert kernels == STEP and operators == OPERATORS + Counter(scalar_tensor=1, where=1, cat=1, index_select=1)
