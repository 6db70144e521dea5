"""A forward that is replaced for one thread: for all others, and afterwards for all, the module is what it was."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from dllm.fast.head.interception import instance_forward, replaced_forward

INPUT = torch.ones(2, 3)


def skip(original, hidden):
    return hidden


def elsewhere(function):
    """What a function returns in another thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_the_calling_thread_alone():
    layer = nn.Linear(3, 5)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    layer.forward = own = lambda hidden: nn.Linear.forward(layer, hidden) * 2
    hooks, inner, want = layer._forward_hooks, own(INPUT), layer(INPUT)

    def other():
        assert torch.equal(layer(INPUT), want)
        with replaced_forward(layer, lambda original, hidden: original(hidden) * 3):
            return torch.equal(layer(INPUT), inner * 3 + 1)

    with pytest.raises(KeyboardInterrupt), replaced_forward(layer, skip):
        assert torch.equal(layer(INPUT), INPUT + 1) and elsewhere(other)
        with replaced_forward(layer, lambda original, hidden: hidden * 5):
            assert torch.equal(layer(INPUT), INPUT * 5 + 1)
        assert torch.equal(layer(INPUT), INPUT + 1) and instance_forward(layer) is own
        raise KeyboardInterrupt
    assert layer.forward is own and layer._forward_hooks is hooks and torch.equal(layer(INPUT), want)


def test_copies_have_the_forward_of_the_module():
    layer = nn.Linear(3, 5)
    with replaced_forward(layer, skip):
        copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for other in copies:
        nn.init.zeros_(other.weight)
        assert instance_forward(other) is None and torch.equal(other(INPUT), layer.bias.expand(2, 5))
    assert instance_forward(layer) is None and "forward" not in vars(layer)


def test_what_others_put_around_it_meanwhile_stays():
    """As accelerate wraps a module that it moves."""
    layer = nn.Linear(3, 5)
    want = layer(INPUT)
    with replaced_forward(layer, skip):
        inner = layer.forward
        layer.forward = own = lambda hidden: inner(hidden) + 1
    assert layer.forward is own and torch.equal(layer(INPUT), want + 1)
    for _ in range(2):
        with replaced_forward(layer, skip):
            assert torch.equal(layer(INPUT), INPUT) and torch.equal(elsewhere(lambda: layer(INPUT)), want + 1)
    assert layer.forward is own


def test_compiled_code_asks_who_calls():
    """And does not compile again for those who replace and those who do not."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5), nn.Tanh())
    body, want = model[0](INPUT), model(INPUT)
    compiled = torch.compile(model, backend="eager")
    for attempt in range(3):
        assert torch.equal(compiled(INPUT), want)
        with replaced_forward(model[1], skip):
            assert torch.equal(compiled(INPUT), body.tanh()) and torch.equal(elsewhere(lambda: compiled(INPUT)), want)
        if attempt == 0:
            frames = torch._dynamo.utils.counters["frames"]["total"]
    assert torch._dynamo.utils.counters["frames"]["total"] == frames
    torch._dynamo.reset()
