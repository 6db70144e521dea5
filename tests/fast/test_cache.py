"""The cache of keys and values, apart from what decodes with it."""

import pytest
import torch
import transformers

from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache import KeyValueCache, SpareCaches
from dllm.fast.sampling.cache_layout import Layer, find_layout
from dllm.models import bidirectional, causal
from tests.causal_models import causal_model
from tests.flash_stand_in import register
from tests.models import tiny
from tests.watch import SyncWatch

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LAYOUT = (Layer(2, 4, 3, torch.float32, torch.float32), Layer(2, 4, 3, torch.bfloat16, torch.bfloat16))


def tap_of(model):
    return SplitModel(model, torch.tensor([[5, 6, 7]]))


def states(rows, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, 2, columns, 4, generator=generator).to(dtype)
    return keys, torch.randn(rows, 2, columns, 3, generator=generator).to(dtype)


def test_every_row_writes_at_columns_of_its_own():
    cache = KeyValueCache(LAYOUT, rows=3, columns=6, device=CPU)
    keys, values = states(2, 2)
    cache.set_write_columns(torch.tensor([0, 2]), torch.tensor([[1, 2], [4, 6]]), visible=None)
    got = cache.update(keys, values, 0)
    assert got[0] is keys and got[1] is values  # it sees itself
    expected = torch.zeros(3, 2, 7, 4)
    expected[0, :, 1:3], expected[2, :, 4], expected[2, :, 6] = keys[0], keys[1, :, 0], keys[1, :, 1]
    assert torch.equal(cache.keys[0], expected) and not cache.keys[1].any()
    cache.set_write_columns(torch.tensor([0, 1]), torch.tensor([[0], [5]]), visible=5)
    seen, _ = cache.update(keys[:, :, :1], values[:, :, :1], 0)
    assert seen.shape == (2, 2, 5, 4) and seen.data_ptr() == cache.keys[0].data_ptr()  # no copy
    assert torch.equal(seen[0, :, 0], keys[0, :, 0]) and torch.equal(seen[0, :, 1:3], keys[0])
    assert not seen[1].any()  # its column 5 lies behind those that are seen


def test_rows_that_leave():
    cache = KeyValueCache(LAYOUT, rows=4, columns=3, device=CPU)
    before = []
    for layer, memory in enumerate((*cache.keys, *cache.values)):
        memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(layer)))
        before.append(memory.clone())
    addresses = [memory.data_ptr() for memory in cache.keys]
    cache.keep([0, 2, 3])
    for memory, was in zip((*cache.keys, *cache.values), before, strict=True):
        assert torch.equal(memory[:3], was[[0, 2, 3]])
    assert addresses == [memory.data_ptr() for memory in cache.keys]


def test_what_was_said_before_a_block():
    """Noted where a block opens, kept elsewhere, and it stays with its row."""
    cache = KeyValueCache(LAYOUT, rows=3, columns=6, device=CPU, shift_column=(5, torch.float32))
    said = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    cache.set_write_columns(torch.arange(3), torch.arange(6).expand(3, 6), visible=None)
    cache.store_shift_column(said, torch.tensor([0, 2, 6]), torch.tensor([True, True, True]))
    assert torch.equal(cache.shift_column, torch.stack([said[0, 0], said[1, 1], said[2, 5]]))
    cache.store_shift_column(-said, torch.tensor([3, 3, 3]), torch.tensor([False, False, True]))
    assert torch.equal(cache.shift_column, torch.stack([said[0, 0], said[1, 1], -said[2, 2]]))
    address = cache.shift_column.data_ptr()
    cache.keep([1, 2])
    cache.set_write_columns(torch.tensor([1, 0]), torch.tensor([[2, 3], [4, 5]]), visible=6)
    window = cache.prepend_shift_column(said[:2, 2:4])
    assert window.shape == (2, 3, 5) and torch.equal(window[:, 0], torch.stack([-said[2, 2], said[1, 1]]))
    assert torch.equal(window[:, 1:], said[:2, 2:4]) and cache.shift_column.data_ptr() == address
    assert cache.bytes == 3 * 2 * 7 * (4 + 3) * (4 + 2) + 3 * 5 * 4
    cache.clear()
    assert not cache.shift_column.any()


def test_memory():
    cache = KeyValueCache(LAYOUT, rows=3, columns=6, device=CPU)
    assert cache.bytes == 3 * 2 * 7 * (4 + 3) * (4 + 2)


def test_the_pool():
    pool = SpareCaches(size=2)

    def take(**changed):
        return pool.take(**(dict(layout=LAYOUT, rows=2, columns=60, device=CPU) | changed))

    first = take()
    assert first.columns == 64
    second = take()
    assert second is not first  # one call's memory is its own
    first.keys[0].fill_(torch.nan)
    pool.give_back(first)
    assert take(rows=3) is not first and take(columns=65) is not first and take(layout=LAYOUT[:1]) is not first
    with torch.inference_mode():
        inside = take()
    assert inside is not first
    assert take(shift_column=(5, torch.float32)) is not first
    assert take(columns=10) is first and not first.keys[0].any()  # nothing of an earlier call is left
    for cache in (first, second, inside):
        pool.give_back(cache)
    assert take() is second  # the first had to go
    with torch.inference_mode():
        assert take() is inside
    pool.clear()
    assert take() is not second


BAD = [
    (lambda cache, k, v: cache.update(k.double(), v, 0), TypeError, "keys of layer 0 must be torch.float32 as the c"),
    (lambda cache, k, v: cache.update(k, v.half(), 0), TypeError, "values of layer 0 must be torch.float32"),
    (
        lambda cache, k, v: cache.update(k[:, :1], v, 0),
        ValueError,
        r"keys of layer 0 must be \[1, 2, 2, 4\], got",
    ),
    (lambda cache, k, v: cache.update(k[:, :, :1], v, 0), ValueError, r"must be \[1, 2, 2, 4\], got \[1, 2, 1, 4\]"),
    (
        lambda cache, *_: cache.set_write_columns(torch.arange(3), torch.zeros(3, 1).long(), visible=1),
        ValueError,
        "a cache of 2 rows",
    ),
    (
        lambda cache, *_: cache.set_write_columns(torch.arange(1), torch.zeros(1, 1).long(), visible=9),
        ValueError,
        "rows of 8 columns",
    ),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[row[-1] for row in BAD])
def test_what_does_not_fit(call, error, message):
    cache = KeyValueCache(LAYOUT, rows=2, columns=8, device=CPU)
    cache.set_write_columns(torch.tensor([0]), torch.tensor([[0, 1]]), visible=8)
    with pytest.raises(error, match=message):
        call(cache, *states(1, 2))


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_layers_keep(family, dtype):
    model = causal_model(family, dtype=dtype)
    assert find_layout(tap_of(model)).layout == (Layer(2, 8, 8, dtype, dtype),) * 2


def test_a_model_without_a_cache():
    with pytest.raises(ValueError, match=r"keeps no cache|must hand its keys and values to past_key_values once"):
        find_layout(tap_of(tiny("modernbert")))


def test_attention_that_takes_no_mask_sees_all():
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    model = bidirectional(transformers.LlamaForCausalLM(transformers.LlamaConfig(**size)).eval())
    model.config._attn_implementation = register()
    assert len(find_layout(tap_of(model)).layout) == 2


def test_a_model_that_sees_something_else():
    """Found again when the hooks have gone or the attention has changed."""
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, attn_implementation="eager")).eval()
    assert len(find_layout(tap_of(bidirectional(model))).layout) == 2
    causal(model)
    with pytest.raises(ValueError, match="a position must see what attention_mask"):
        find_layout(tap_of(model))  # eager attention adds what it is given: True is 1
    bidirectional(model)
    assert len(find_layout(tap_of(model)).layout) == 2


def test_of_a_broken_model_nothing_is_remembered():
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, attn_implementation="eager")).eval()
    good = model.lm_head.weight.data, model.model.norm.weight.data.clone()
    model.model.norm.weight.data.fill_(torch.nan)
    assert len(find_layout(tap_of(model)).layout) == 1
    model.model.norm.weight.data.copy_(good[1])
    with pytest.raises(ValueError, match="a position must see"):
        find_layout(tap_of(model))


def test_the_host_waits_for_nothing():
    model = causal_model()
    cache = KeyValueCache(find_layout(tap_of(model)).layout, rows=2, columns=12, device=CPU)
    row, column = torch.arange(2), torch.tensor([[0, 1, 2], [5, 6, 7]])
    mask = (torch.arange(12) < 8).expand(2, 1, 3, 12)
    with SyncWatch() as watch, torch.no_grad():
        cache.set_write_columns(row, column, visible=12)
        model(input_ids=column + 5, attention_mask=mask, position_ids=column, past_key_values=cache)
    assert not watch.seen and watch.operators > 20
