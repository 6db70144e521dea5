"""The last layer behind its attention, on the positions that are read only."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dllm.fast import generate, quantize
from dllm.fast.compiled.body import CompiledBody
from dllm.fast.head.last_layer import ROW_MULTIPLE, find_tail, only_read
from dllm.fast.head.split import SplitModel, output_head
from tests.causal_models import causal_model
from tests.models import FAMILIES, MASK_ID, make_prompt, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, COLUMNS = 3, 20
READ = torch.tensor([58, 3, 21, 7, 40])
BEHIND = {
    "bert": ["attention.output", "intermediate", "output"],
    "roberta": ["attention.output", "intermediate", "output"],
    "modernbert": ["attn.Wo", "mlp"],
}


def last_layer_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))[-1]


def tail_of(model):
    """Names within the last layer of the modules that run on chosen positions."""
    names = {module: name for name, module in last_layer_of(model).named_modules()}
    tail = find_tail(model, output_head(model), torch.tensor([[5]]))
    return tail if tail is None else [names[module] for module in tail]


def states_of(model, read):
    """The states that are read, and how many multiplications and additions they took."""
    split, tokens = SplitModel(model, make_prompt(model, 1, 3)), make_prompt(model, BATCH, COLUMNS)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        return split.body(tokens, None, read).flatten(0, 1)[READ], counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_that_are_read_are_the_same(family, dtype):
    model = tiny(family).to(dtype)
    (full, everywhere), (part, few) = states_of(model, None), states_of(model, READ)
    assert torch.equal(part, full)
    behind = [module for name, module in last_layer_of(model).named_modules() if name.startswith(tuple(BEHIND[family]))]
    weights = sum(module.weight.numel() for module in behind if isinstance(module, nn.Linear))
    assert everywhere - few == 2 * weights * (BATCH * COLUMNS - ROW_MULTIPLE) > 0
    assert tail_of(model) == BEHIND[family]


def test_causal_models_have_it_too_and_mixtures_do_not():
    assert tail_of(causal_model("Llama")) == ["self_attn.o_proj", "mlp"]
    assert tail_of(causal_model("Qwen3Moe")) == []


def test_weights_of_8_bits_run_on_few_positions_too():
    model = quantize(tiny("modernbert", hidden_size=64, intermediate_size=64))
    assert tail_of(model) == BEHIND["modernbert"]
    assert torch.equal(states_of(model, READ)[0], states_of(model, None)[0])


def test_no_value_decides_what_lies_behind_the_attention():
    """Keys and values that change nothing yet, because what reads them is zero, will change something later."""
    model = tiny("modernbert")
    nn.init.zeros_(last_layer_of(model).attn.Wo.weight)
    assert tail_of(model) == BEHIND["modernbert"]


def test_a_hook_that_would_see_it_prevents_it():
    model, seen = tiny("bert"), []
    handle = last_layer_of(model).register_forward_hook(lambda module, args, out: seen.append(out[0].isfinite().all()))
    assert tail_of(model) is None
    handle.remove()
    assert tail_of(model) == BEHIND["bert"]
    model.register_forward_pre_hook(lambda module, args: None)  # it sees tokens
    assert tail_of(model) == BEHIND["bert"]
    first = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[0]
    first.register_forward_hook(lambda *args: None)  # it sees what it always saw
    assert tail_of(model) == BEHIND["bert"]


def test_a_layer_that_changes_is_looked_at_again():
    class Neighbours(nn.Module):
        """Adds to each position what stands left of it."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, hidden):
            return self.inner(hidden + hidden.roll(1, dims=1))

    model = tiny("modernbert")
    assert tail_of(model) == BEHIND["modernbert"]
    layer = last_layer_of(model)
    layer.mlp = Neighbours(layer.mlp)
    assert tail_of(model) == ["mlp.inner"]


def test_layers_that_are_shared_run_everywhere():
    import transformers

    size = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_attention_heads=4, embedding_size=16)
    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**size, num_hidden_layers=3)).eval()
    assert find_tail(model, output_head(model), torch.tensor([[5]])) == ()


@pytest.mark.parametrize("options", [{}, dict(cfg_scale=1.5), dict(temperature=1.0)], ids=str)
def test_tokens_are_those_of_a_layer_that_runs_everywhere(options, monkeypatch):
    """Also with rows of different length, and under guidance."""
    model = tiny("bert")
    prompt, mask = make_prompt(model, BATCH, COLUMNS), torch.ones(BATCH, COLUMNS, dtype=torch.int64)
    mask[1, :9] = 0
    call = dict(
        steps=12, gen_length=24, block_length=12, attention_mask=mask, mask_id=MASK_ID, seed=[3, 4, 5], **options
    )
    found = generate(model, prompt, **call)
    monkeypatch.setattr("dllm.fast.head.split.find_tail", lambda *args: ())
    assert torch.equal(found, generate(model, prompt, **call))


class Counted:
    """A compiler that counts the multiplications of what it compiled, whenever it runs."""

    def __init__(self):
        self.flops = []

    def __call__(self, graph, inputs):
        def run(*args):
            with FlopCounterMode(display=False) as counter:
                out = graph(*args)
            self.flops.append(counter.get_total_flops())
            return out

        return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_body_leaves_out_the_same(family, monkeypatch):
    compiler = Counted()
    monkeypatch.setattr("dllm.fast.compiled.body._BACKEND", compiler)
    model, more = tiny(family), READ.repeat(4)
    split, tokens = SplitModel(model, make_prompt(model, 1, 3)), make_prompt(model, BATCH, COLUMNS)
    compiled = CompiledBody(model, required=True)
    with torch.no_grad():
        full = split.body(tokens, None).flatten(0, 1)
        split.body_context = compiled.in_place
        for read in (READ, more, None, READ):
            hidden = split.body(tokens, None, read).flatten(0, 1)
            chosen = slice(None) if read is None else read
            assert torch.allclose(hidden[chosen], full[chosen], atol=1e-4)
        wide = split.body(make_prompt(model, BATCH + 1, COLUMNS + 4), None, READ)
        assert wide.shape == (BATCH + 1, COLUMNS + 4, 32)
    assert compiled.graphs == 2, "one where all is read, one for any other number"
    behind = [module for name, module in last_layer_of(model).named_modules() if name.startswith(tuple(BEHIND[family]))]
    weights = sum(module.weight.numel() for module in behind if isinstance(module, nn.Linear))
    first, second, all_read, again, _ = compiler.flops
    assert first == again and second - first == 2 * weights * ROW_MULTIPLE
    assert all_read - first == 2 * weights * (BATCH * COLUMNS - ROW_MULTIPLE)


def test_what_somebody_sees_of_a_compiled_body_is_whole(monkeypatch):
    monkeypatch.setattr("dllm.fast.compiled.body._BACKEND", "eager")
    model, seen = tiny("bert"), []
    model.bert.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    tokens = make_prompt(model, BATCH, COLUMNS)
    split = SplitModel(model, tokens[:1, :3])
    split.body_context = CompiledBody(model, required=True).in_place
    with torch.no_grad():
        split.body(tokens, None, READ)
    assert split.tail is None and bool((seen[-1] != 0).any(-1).all())


def test_other_forwards_are_left_alone():
    """Those of other shapes, those that record gradients, and those of which nearly all is read."""
    layer, states = nn.Linear(2, 2), torch.ones(4, 8, 2)
    with torch.no_grad():
        whole = layer(states)
        with only_read((layer,), torch.tensor([20]), (4, 8)):
            assert torch.equal(layer(states)[2, 4], whole[2, 4]) and not layer(states)[1].any()
            assert torch.equal(layer(states[:1]), whole[:1])
        with only_read((layer,), torch.tensor([], dtype=torch.int64), (4, 8)):
            assert not layer(states)[2].any(), "a batch of which nothing is learnt"
        with only_read((layer,), torch.arange(25), (4, 8)):
            assert torch.equal(layer(states), whole)
    with only_read((layer,), torch.tensor([20]), (4, 8)):
        assert torch.equal(layer(states), whole)
