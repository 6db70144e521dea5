"""Rows of any lengths in one forward on a CPU, without padding: what attention computes, whose bits, and for whom."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers

from dllm.core import samplers
from dllm.fast.attention import PACKED, attention_of, is_packed
from dllm.fast.compiled.attention import is_measured_here
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import unpadded
from dllm.fast.sampling.running import Running
from dllm.models import packed_attention, with_packed_attention
from tests.causal_models import causal_model
from tests.models import MASK_ID, tiny

V5 = int(transformers.__version__.split(".")[0]) >= 5
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not is_measured_here(), reason="the kernel is not there, or was not measured on such a CPU"),
]
needs_v5 = pytest.mark.skipif(not V5, reason="before transformers 5 these models have attention of their own")
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1)
LENGTHS = (5, 1, 24, 9, 13)
# a head of 32 numbers, which our kernel takes, and heads of 8, which it does not
FAMILIES = ["Llama", *(("bert", "modernbert", "bert, heads of 8", "modernbert, heads of 8") if V5 else ())]


def made(family, dtype=torch.float32, seed=0):
    if family == "Llama":
        model = causal_model(family)
    else:
        family, _, small = family.partition(", ")
        model = tiny(family, seed, **({} if small else dict(num_attention_heads=1)))
    return model.to(dtype)


@pytest.fixture
def switched():
    """A model under the attention, and afterwards as it was: some are shared."""
    before = []

    def switch(model):
        before.append((model.config, attention_of(model)))
        assert attention_of(with_packed_attention(model)) == PACKED
        return model

    yield switch
    for config, name in before:
        config._attn_implementation = name


def rows_of(model, lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, model.config.vocab_size, (length,), generator=draw) for length in lengths]


@torch.no_grad()
def hidden_of(model, rows):
    """What the head reads of each row, all in one forward."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    cells = unpadded.real_cells(mask)
    tokens = torch.zeros_like(mask).flatten().index_copy(0, cells, torch.cat(rows)).view_as(mask)
    mask = None if bool(mask.all()) else mask
    out = unpadded.run(SplitModel(model, rows[0][None]), tokens, mask, cells)
    return [states[: len(row)] for states, row in zip(out, rows, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_a_row_alone(family, switched):
    """As sdpa computes them in float64; ModernBERT's second layer has a window of 6 columns to each side."""
    model = made(family)
    rows = rows_of(model, LENGTHS)
    alone = lambda model: [SplitModel(model, row[None]).body(row[None], None)[0] for row in rows]  # noqa: E731
    plain = alone(model)
    true = alone(model.double())
    model.float()
    for got, theirs, exact in zip(hidden_of(switched(model), rows), plain, true, strict=True):
        assert got.shape == exact.shape
        scale = torch.finfo(torch.float32).eps * exact.abs().max()
        assert (got - exact).abs().max() <= 4 * (theirs - exact).abs().max() + 4 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_same_bits_in_any_company(family, dtype, switched):
    model = switched(made(family, dtype))
    rows = rows_of(model, (*LENGTHS, *range(1, 20)))
    alone = [hidden_of(model, [row])[0] for row in rows]
    for company in (rows, rows[::-1], rows[3:11], rows[1:3]):
        for row, states in zip(company, hidden_of(model, company), strict=True):
            (expected,) = [own for other, own in zip(rows, alone, strict=True) if other is row]
            assert torch.equal(states, expected)
    model.float()


@needs_v5
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_nothing_leaks_from_a_neighbour_that_is_no_number(family, switched):
    model = switched(made(family))
    rows = rows_of(model, LENGTHS)
    expected = hidden_of(model, rows)
    with torch.no_grad():
        model.get_input_embeddings().weight[4] = torch.nan
    rows[2][7] = 4
    got = hidden_of(model, rows)
    assert got[2].isnan().any()
    for row in (0, 1, 3, 4):
        assert torch.equal(got[row], expected[row])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_where_our_kernel_does_not_serve(causal, window, dropout):
    """Gradients, dropout and causal models: PyTorch's attention, row by row."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 12, 32, generator=draw, requires_grad=True)
    key, value = torch.randn(2, 1, 2, 12, 32, generator=draw)
    ends, place = torch.tensor([0, 5, 5, 6, 12], dtype=torch.int32), torch.arange(12)
    row = torch.searchsorted(ends[1:].contiguous(), place, right=True)
    back = place[:, None] - place
    seen = (row[:, None] == row) & (back.abs() < (window or 12)) & ((back >= 0) | (not causal))
    module = SimpleNamespace(is_causal=not causal)
    out, _ = packed_attention.packed_sdpa(
        *(module, query, key, value, None, dropout, 0.3, causal, window, ends), max_length_q=6
    )
    out.sum().backward()
    assert query.grad.isfinite().all() and out.shape == (1, 12, 4, 32)
    expected = F.scaled_dot_product_attention(
        *(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), seen), scale=0.3
    ).transpose(1, 2)
    assert torch.allclose(out, expected, atol=1e-5) == (dropout == 0)


def test_what_it_refuses():
    x = torch.zeros(1, 1, 4, 32)
    ends, module = torch.tensor([0, 4], dtype=torch.int32), SimpleNamespace(is_causal=False)
    for given, options, message in (
        ((x, x[:, :, :3], x[:, :, :3]), {}, r"one long row without a cache, got \[1, 1, 4, 32\] and \[1, 1, 3, 32\]"),
        ((x.expand(2, -1, -1, -1),) * 3, {}, "one long row without a cache"),
        ((x, x, x), dict(softcap=30.0), "does not offer softcap"),
    ):
        with pytest.raises(ValueError, match=message):
            packed_attention.packed_sdpa(module, *given, None, cu_seq_lens_q=ends, **options)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_without_ends_it_is_sdpa(family, switched):
    """To the last bit, and with the same masks."""
    model = made(family)
    tokens = torch.stack(rows_of(model, (40, 40)))
    mask = (torch.arange(40) < torch.tensor([[40], [31]])).long()
    expected = [model(input_ids=tokens, attention_mask=given).logits for given in (None, mask)]
    switched(model)
    got = [model(input_ids=tokens, attention_mask=given).logits for given in (None, mask)]
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(
    "settings", [dict(), dict(cfg_scale=0.5), dict(stop_at_eos=True), dict(right_shift_logits=True)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_samplers_give_the_same_tokens(family, settings, switched):
    """In one forward of all rows, whatever their lengths, and no padding."""
    model = made(family)
    rows = [row.tolist() for row in rows_of(model, LENGTHS)]
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    given = dict(max_new_tokens=12, block_size=4, steps=6, temperature=0.6, seed=5, return_dict=True) | settings
    expected = sampler.sample(rows, **given)
    switched(model)
    shapes = []
    handle = model.register_forward_pre_hook(lambda *call: shapes.append(call[2]["input_ids"].shape), with_kwargs=True)
    got = sampler.sample(rows, **given)
    handle.remove()
    assert torch.equal(got.sequences, expected.sequences) and got.stats.row_forwards == expected.stats.row_forwards
    assert got.stats.note.endswith(f"rows run without their padding under {PACKED}")
    columns = (sum(LENGTHS) + 12 * len(LENGTHS)) * (2 if "cfg_scale" in settings else 1)
    assert shapes[-1][0] == 1 and max(shape[1] for shape in shapes) == -(-columns // 8) * 8


@needs_v5
def test_a_running_batch_is_as_wide_as_its_rows(switched):
    """Rows join and leave, and each is told what it is told alone; widths are lengths, also where others are asked."""
    model = switched(made("modernbert"))
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    plans = [
        sampler.plan([row.tolist()], seed=n, steps=4 + n, max_new_tokens=8, temperature=4.0)
        for n, row in enumerate(rows_of(model, LENGTHS))
    ]

    def finished(running):
        rows = {}
        while running:
            for row in running.step():
                rows[row.id] = row.tokens.tolist()
        return rows

    alone = []
    for plan in plans:
        running = Running(model, plan.policy, width_multiple=8)
        running.join(plan.batch, plan.policy)
        alone.append(finished(running)[0])
    running, got = Running(model, plans[0].policy, width_multiple=8), {}
    for plan in plans:
        running.join(plan.batch, plan.policy)
        got |= {row.id: row.tokens.tolist() for row in running.step()}
    assert running.widths == [LENGTHS[id_] + 8 for id_ in running.ids]
    assert (got | finished(running)) == dict(enumerate(alone))


def test_who_gets_it(monkeypatch):
    """Models under sdpa, and nobody else."""
    model = copy.deepcopy(causal_model("Llama"))
    model.config._attn_implementation = "eager"
    assert attention_of(with_packed_attention(model)) == "eager"
    model.config._attn_implementation = "sdpa"
    monkeypatch.setattr(packed_attention, "is_measured_here", lambda: False)
    assert attention_of(with_packed_attention(model)) == "sdpa" and not is_packed(model)
    monkeypatch.undo()
    assert is_packed(with_packed_attention(model)) and not is_packed(model.to("meta"))


@pytest.mark.skipif(V5, reason="before transformers 5")
def test_modernbert_before_5_keeps_what_it_has():
    model = tiny("modernbert")
    assert attention_of(with_packed_attention(model)) == attention_of(tiny("modernbert"))


class Centred(torch.nn.Identity):
    """Takes the mean of all columns off: packed rows see each other."""

    def forward(self, states):
        return states - states.mean(1, keepdim=True)


@pytest.mark.parametrize("change", ["hook", "module", "class"])
def test_a_model_that_changes_is_tried_again(change, switched, monkeypatch):
    """After packed rows have run; the change has no weights."""
    model = switched(copy.deepcopy(causal_model("Llama")))
    norm, rows = model.model.norm, rows_of(model, LENGTHS)
    assert unpadded.runs_packed(SplitModel(model, rows[0][None]))[0]
    if change == "hook":
        norm.register_forward_hook(lambda _, args, out: Centred()(out))
    elif change == "module":
        model.model.norm = torch.nn.Sequential(norm, Centred())
    else:
        forward = type(norm).forward
        monkeypatch.setattr(type(norm), "forward", lambda self, x: Centred()(forward(self, x)))
    packed, note = unpadded.runs_packed(SplitModel(model, rows[0][None]))
    assert not packed and "packed rows see each other in LlamaForCausalLM" in note


@needs_v5
def test_a_model_that_cannot_keeps_its_padding(switched):
    """RoBERTa counts positions from its padding token's number on."""
    model = tiny("roberta")
    rows = [row.tolist() for row in rows_of(model, LENGTHS)]
    sampler, given = samplers.MDLMSampler(model, TOKENIZER), dict(max_new_tokens=8, steps=4, seed=1)
    expected = sampler.sample(rows, **given)
    switched(model)
    got = sampler.sample(rows, return_dict=True, **given)
    assert torch.equal(got.sequences, expected)
    assert got.stats.note.endswith("with their padding, because the positions of RobertaForMaskedLM do not begin at 0")
    plan = sampler.plan(rows, **given)
    running = Running(model, plan.policy, width_multiple=8)
    running.join(plan.batch)
    assert running.widths == [16, 16, 40, 24, 24]
