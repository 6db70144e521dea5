"""linear_cross_entropy: against float64 and plain PyTorch's error; what meets the head, is kept, is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dllm_kernels import linear_cross_entropy
from dllm_kernels.linear_cross_entropy import chunked, reference
from dllm_kernels.testing import (
    assert_no_worse,
    make_rows,
    operand_rounding,
    plain_cross_entropy,
    poisoned_memory,
)
from tests.kernels.test_masked_cross_entropy import ALL, CPU, CUDA, DTYPES, KERNELS, OPTIONS, UPSTREAM, objective, place
from tests.watch import LiveBytes, Products, SyncWatch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAN = math.nan
N, H, V = 7, 16, 300
# which hidden row each of nine targets reads: out of order, one of them twice, one (without a weight) nowhere
ROWS = torch.tensor([-9, 0, 3, 1, 3, 2, 6, 5, 0])


@pytest.fixture
def short_chunks(monkeypatch):
    """Six rows with a weight are two chunks, and the last block of the vocabulary is a short one."""
    monkeypatch.setattr(chunked, "CHUNK_ROWS_IN_CACHE", 4)
    monkeypatch.setattr(chunked, "chunk_rows", lambda *shape: 4)
    monkeypatch.setattr(chunked, "BLOCK_V", 128)


def make_head(dtype=torch.float32, *, hidden=N, width=H, vocab=V, seed=0):
    """hidden, weight, bias: logits with a standard deviation of about 3."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [((hidden, width), 1.0), ((vocab, width), 3 / math.sqrt(width)), ((vocab,), 1.0)]
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape, scale in shapes]


def results(function, tensors, upstream, frozen=()):
    """loss, nll and the gradients of hidden, weight and bias; None for the frozen ones."""
    names = ("hidden", "weight", "bias")
    leaves = [None if x is None else x.detach().clone() for x in tensors]
    for name, x in zip(names, leaves, strict=True):
        if x is not None:
            x.requires_grad_(name not in frozen)
    loss, nll = function(*leaves)
    objective(loss, nll, upstream).backward()
    gradients = {name: x.grad for name, x in zip(names, leaves, strict=True) if x is not None and x.requires_grad}
    return {"loss": loss.detach().reshape(1), "nll": nll.detach()} | gradients


def plain(hidden, weight, bias, targets, row_weight, rows=None, **options):
    """What anybody would write: the head on every row, and F.cross_entropy in float32."""
    source = torch.arange(len(targets)) if rows is None else rows.clamp(min=0)
    return plain_cross_entropy(F.linear(hidden[source], weight, bias), targets, row_weight, **options)


# when gradients are formed
HOWS = [{}, dict(recompute=True), dict(keep=True)]


def check(impl, tensors, targets, row_weight, upstream="one", *, rows=None, how=HOWS[0], **options):
    at = place(impl)
    on_device = None if rows is None else rows.to(at)

    def fast(hidden, weight, bias):
        rest = dict(bias=bias, rows=on_device, impl=impl, **how, **options)
        return linear_cross_entropy(hidden, weight, targets.to(at), row_weight.to(at), **rest)

    def true(hidden, weight, bias):
        return reference.linear_cross_entropy(hidden, weight, bias, targets, row_weight.double(), rows, None, **options)

    def widened(x):
        return None if x is None else x.double()

    with poisoned_memory():
        got = results(fast, [None if x is None else x.to(at) for x in tensors], upstream)
    truth = results(true, list(map(widened, tensors)), upstream)
    truth = {name: truth[name].flatten() for name in truth}  # rows of hidden differ in weight by 1000
    draws = plain_in_orders(tensors, targets, row_weight, upstream, rows, **options)
    assert {name: x.dtype for name, x in got.items()} == {name: x.dtype for name, x in draws[0].items()}
    flat = [{name: x.flatten() for name, x in found.items()} for found in (got, *draws)]
    assert_no_worse(flat[0], flat[1:], truth)
    return got


def plain_in_orders(tensors, targets, row_weight, upstream, rows, draws=32, **options):
    """What anybody would write, `draws` times: the hidden dimension and the vocabulary each time in another order.

    That changes nothing but the order of the sums. A row with a weight of 1000 decides what the largest errors are, so
    one order may be exact by chance where the next is off by 5 ulp.
    """
    generator = torch.Generator().manual_seed(0)
    width, vocab = tensors[1].shape[1], tensors[1].shape[0]

    def draw():
        columns, tokens = (torch.randperm(n, generator=generator) for n in (width, vocab))
        labels = tokens.argsort()[targets.clamp(min=0)]

        def reordered(hidden, weight, bias):
            head = weight[tokens][:, columns], None if bias is None else bias[tokens]
            return plain(hidden[:, columns], *head, labels, row_weight, rows, **options)

        return results(reordered, tensors, upstream)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more cost such small products more than they bring
    try:
        return [draw() for _ in range(draws)]
    finally:
        torch.set_num_threads(threads)


# against float64


@pytest.mark.covering(2)
@KERNELS
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(impl, dtype, upstream, how):
    check(impl, make_head(dtype), *make_rows(9, V), upstream, rows=ROWS, how=how)


@KERNELS
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_chunks(impl, dtype, upstream, short_chunks):
    check(impl, make_head(dtype), *make_rows(9, V), upstream, rows=ROWS)


@KERNELS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(impl, options):
    check(impl, make_head(), *make_rows(N, V), "both", **options)


# one token; a ragged vocabulary; wider than it is long; no bias
@KERNELS
@pytest.mark.parametrize("shape", [(1, 3, 1), (5, 33, 97), (12, 64, 40), (30, 8, 1025)])
@pytest.mark.parametrize("biased", [False, True])
def test_shapes(impl, shape, biased):
    hidden, width, vocab = shape
    tensors = make_head(hidden=hidden, width=width, vocab=vocab)
    weight = torch.full((hidden,), 2.0) if hidden == 1 else make_rows(hidden, vocab)[1]
    check(impl, [*tensors[:2], tensors[2] if biased else None], make_rows(hidden, vocab)[0].clamp(min=0), weight)


@KERNELS
def test_operands_that_lie_otherwise(impl, short_chunks):
    """Transposed and strided hidden states and head."""
    hidden, weight, bias = make_head()
    turned = [hidden.t().contiguous().t(), weight.t().contiguous().t(), bias.repeat_interleave(2)[::2]]
    at, rows = place(impl), make_rows(9, V)
    targets, row_weight, where = (x.to(at) for x in (*rows, ROWS))

    def run(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, targets, row_weight, bias=bias, rows=where, impl=impl)

    got, expected = (results(run, [x.to(at) for x in given], "scaled") for given in (turned, (hidden, weight, bias)))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reference_gradient(options):
    tensors = [x.double().requires_grad_() for x in make_head(hidden=3, width=2, vocab=5)]
    targets, weight = torch.tensor([4, -100, 0, 2]), torch.tensor([2.0, 0.0, 0.5, 7.0]).double()
    rows = torch.tensor([2, -5, 0, 2])

    def run(*tensors):
        return reference.linear_cross_entropy(*tensors, targets, weight, rows, None, **options)

    assert torch.autograd.gradcheck(run, tensors)


# rows: which there are, which meet the head, which hidden row they read


@ALL
def test_a_right_shift_is_a_row_map(impl):
    """Position p reads hidden row p - 1, as in Dream: the same as shifting by hand."""
    at = place(impl)
    hidden, weight, _ = (x.to(at) for x in make_head())
    positions, targets = torch.tensor([1, 2, 5], device=at), torch.tensor([7, 8, 9], device=at)
    ones = torch.ones(3, device=at)
    got = linear_cross_entropy(hidden, weight, targets, ones, rows=positions - 1, impl=impl)
    by_hand = linear_cross_entropy(hidden[[0, 1, 4]], weight, targets, ones, impl=impl)
    assert torch.equal(got.nll, by_hand.nll) and torch.equal(got.loss, by_hand.loss)


@ALL
@pytest.mark.parametrize("known", [True, False])
def test_rows_without_a_weight_are_never_read(impl, known, monkeypatch):
    """Neither where the host counts them nor where padding takes part in the products, as on a device."""
    at = place(impl)
    monkeypatch.setattr(chunked, "_on_host", lambda x: known)
    tensors = [x.to(at) for x in make_head(hidden=9)]
    targets, weight = (x.to(at) for x in make_rows(9, V))
    poisoned = [torch.where((weight == 0)[:, None], NAN, tensors[0]), *tensors[1:]]

    def run(hidden, head, bias):
        return linear_cross_entropy(hidden, head, targets, weight, bias=bias, impl=impl)

    clean, dirty = results(run, tensors, "both"), results(run, poisoned, "both")
    for name, x in clean.items():
        assert not x.isnan().any() and torch.equal(x, dirty[name])
    assert (clean["hidden"][weight == 0] == 0).all()


@KERNELS
@pytest.mark.parametrize("known", [True, False])
def test_capacity(impl, known, monkeypatch):
    """Room for more rows than there are changes nothing; fewer products where there is less room."""
    monkeypatch.setattr(chunked, "_on_host", lambda x: known)
    at = place(impl)
    tensors, (targets, weight) = [x.to(at) for x in make_head(hidden=9)], (x.to(at) for x in make_rows(9, V))
    used = int((weight != 0).sum())

    def run(capacity):
        def call(hidden, head, bias):
            return linear_cross_entropy(hidden, head, targets, weight, bias=bias, capacity=capacity, impl=impl)

        with Products() as products:
            got = results(call, tensors, "one")
        return got, products.shapes[0]

    expected, _ = run(None)
    for capacity in (used, used + 2, 99):
        got, shape = run(capacity)
        assert shape == (used if known else min(capacity, 9), V)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_more_weights_than_capacity(monkeypatch):
    hidden, head, bias = make_head(hidden=9)
    targets, weight = make_rows(9, V)
    with pytest.raises(ValueError, match="at most capacity = 5 rows may have a weight, got 6"):
        linear_cross_entropy(hidden, head, targets, weight, capacity=5)
    # on a device, where no one can count them before: NaN, everywhere
    monkeypatch.setattr(chunked, "_on_host", lambda x: False)
    monkeypatch.setattr(chunked, "check_values", lambda *_: None)
    assert linear_cross_entropy(hidden, head, targets, weight, capacity=0).loss.isnan()
    got = results(
        lambda *x: linear_cross_entropy(*x[:2], targets, weight, bias=x[2], capacity=5), (hidden, head, bias), "one"
    )
    assert got["loss"].isnan().all() and got["weight"].isnan().all()


@ALL
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("n", [0, 3])
def test_no_row_with_a_weight(impl, n, how):
    at = place(impl)
    zeros, labels = torch.zeros(n, device=at), torch.full((n,), -100, device=at)

    def run(hidden, head, bias):
        return linear_cross_entropy(hidden, head, labels, zeros, bias=bias, impl=impl, **how)

    got = results(run, [x.to(at) for x in make_head(hidden=n)], "both")
    assert all((x == 0).all() for x in got.values()) and got["weight"].shape == (V, H)


def test_rows_and_labels_that_only_a_device_has_seen(monkeypatch):
    """A row outside the hidden states or a label outside the vocabulary: NaN, and no memory outside is read."""
    monkeypatch.setattr(chunked, "check_values", lambda *_: None)
    hidden, head, bias = make_head()
    targets, rows = torch.tensor([1, 2, V, 3, 4]), torch.tensor([0, N, 1, -1, 99])
    got = linear_cross_entropy(hidden, head, targets, torch.tensor([1.0, 1, 1, 1, 0]), bias=bias, rows=rows)
    assert got.nll.isnan().tolist() == [False, True, True, True, False] and got.loss.isnan()


# products, memory, determinism, syncs


FORM, RECOMPUTE, KEEP = HOWS
COUNTS = [  # how, upstream, frozen -> products
    (FORM, "one", (), 3),
    (RECOMPUTE, "one", (), 4),
    (RECOMPUTE, "nll", (), 4),
    (RECOMPUTE, "both", (), 4),
    (KEEP, "one", (), 3),
    (KEEP, "nll", (), 3),
    (KEEP, "both", (), 3),
    (FORM, "both", (), 6),
    (FORM, "one", ("hidden",), 2),
    (FORM, "one", ("weight",), 2),
    (FORM, "one", ("weight", "hidden"), 1),
    (RECOMPUTE, "nll", ("weight",), 3),
    (KEEP, "nll", ("weight",), 2),
]


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize(("how", "upstream", "frozen", "expected"), COUNTS)
def test_number_of_products(impl, how, upstream, frozen, expected):
    """And only the rows that count are in them: those with a weight, or with a gradient when one comes back."""
    targets, weight = make_rows(9, V)

    def run(hidden, head, bias):
        return linear_cross_entropy(hidden, head, targets, weight, bias=bias, impl=impl, **how)

    with Products() as products:
        results(run, make_head(hidden=9), upstream, frozen)
    used = int((weight != 0).sum())
    assert len(products.shapes) == expected
    assert set(products.shapes) <= {(used, V), (used, H), (V, H)}


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("how", [RECOMPUTE, KEEP])
def test_a_sparse_gradient_meets_the_head_with_its_rows_only(impl, how):
    hidden, head, _ = (x.requires_grad_() for x in make_head(hidden=9))
    _, nll = linear_cross_entropy(hidden, head, *make_rows(9, V), impl=impl, **how)
    with Products() as products:
        nll[4].backward()
    assert products.shapes == [(1, V), (1, H), (V, H)][how == KEEP :]


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("how", HOWS)
def test_a_second_backward_forms_the_same_again(impl, how):
    hidden, head, bias = (x.requires_grad_() for x in make_head(hidden=9))
    loss, nll = linear_cross_entropy(hidden, head, *make_rows(9, V), bias=bias, impl=impl, **how)
    upstream = torch.linspace(-1, 2, len(nll))
    first, second = (
        torch.autograd.grad((nll * upstream).sum() + loss, (hidden, head, bias), retain_graph=True) for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("impl", [CPU])
def test_kept_slopes_of_too_many_weights_are_nan(impl, monkeypatch):
    """What only a device sees: more rows with a weight than there is room for."""
    monkeypatch.setattr(chunked, "check_values", lambda *_: None)
    targets, weight = torch.zeros(6, dtype=torch.int64), torch.ones(6)
    monkeypatch.setattr(chunked, "_on_host", lambda x: False)
    got = results(
        lambda *x: linear_cross_entropy(*x[:2], targets, weight, bias=x[2], capacity=5, keep=True, impl=impl),
        make_head(hidden=6),
        "nll",
    )
    assert got["nll"].isnan().all() and got["weight"].isnan().all() and got["hidden"].isnan().any()


@pytest.mark.parametrize("impl", [CPU])
def test_without_gradients_there_is_one_product(impl):
    hidden, head, bias = make_head(hidden=9)
    with Products() as products:
        got = linear_cross_entropy(hidden, head, *make_rows(9, V), bias=bias, impl=impl)
        with torch.no_grad():
            again = linear_cross_entropy(hidden, head.requires_grad_(), *make_rows(9, V), bias=bias, impl=impl)
    assert len(products.shapes) == 2 and not again.loss.requires_grad and torch.equal(got.nll, again.nll)


# one chunk; several; the same where several need a float32 sum of the weight's gradient
@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize(
    ("dtype", "chunk"), [(torch.float32, 256), (torch.float32, 64), (torch.bfloat16, 136), (torch.bfloat16, 64)]
)
def test_peak_memory_is_the_formula_of_the_docstring(impl, dtype, chunk, monkeypatch):
    if dtype == torch.float32:
        assert chunked.CHUNK_ROWS_IN_CACHE == 256  # as the docstring says
        monkeypatch.setattr(chunked, "CHUNK_ROWS_IN_CACHE", chunk)
    else:
        monkeypatch.setattr(chunked, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(chunked, "BLOCK_V", 512)
    rows, width, vocab = 300, 32, 4000
    tensors = [x.requires_grad_() for x in make_head(dtype, hidden=rows, width=width, vocab=vocab)]
    targets, weight = make_rows(rows, vocab)
    with LiveBytes(*tensors, targets, weight) as memory:
        linear_cross_entropy(*tensors[:2], targets, weight, bias=tensors[2], impl=impl).loss.backward()
    s, used = dtype.itemsize, int((weight != 0).sum())
    one = dtype == torch.bfloat16 and used <= chunk + 2 * width
    C = used if one else min(used, chunk)
    assert one == (chunk == 136)
    formula = C * vocab * s + 3 * C * width * s + 64 * rows
    if s < 4 and not one:
        formula += 4 * vocab * width + 4 * C * (width + 2 * 512)
    gradients = sum(x.grad.nbytes for x in tensors)
    assert C * vocab * s < memory.peak - gradients <= formula + 8 * vocab  # a bias and its float32 sum
    assert memory.peak < rows * vocab * s + gradients or s < 4  # less than logits of all rows


CHUNKS = [  # dtype, width, rows, whether the weight's gradient is formed -> rows of a chunk
    (torch.bfloat16, 4096, 4096, True, 4096),
    (torch.bfloat16, 4096, 2048 + 2 * 4096, True, 2048 + 2 * 4096),
    (torch.bfloat16, 4096, 2049 + 2 * 4096, True, 4096),
    (torch.bfloat16, 1024, 4096, True, 4096),
    (torch.bfloat16, 1024, 4097, True, 2048),
    (torch.bfloat16, 4096, 4096, False, 2048),
    (torch.float16, 4096, 4096, True, 4096),
    (torch.float16, 1024, 4096, True, 2048),
    (torch.float32, 4096, 4096, True, 2048),
    (torch.bfloat16, 4096, 0, True, 1),
]


@pytest.mark.parametrize(("dtype", "width", "rows", "weight_gradient", "expected"), CHUNKS)
def test_rows_of_a_chunk(dtype, width, rows, weight_gradient, expected):
    """One chunk takes no more memory for a token of the vocabulary than 2048 rows and its float32 gradient; of several
    chunks, logits take at most half of the gradient, or 2048 rows."""
    found = chunked.chunk_rows(dtype, width, rows, weight_gradient)
    assert found == expected
    logits, gradient = found * dtype.itemsize, 4 * width
    if found < rows:
        assert logits <= max(gradient / 2, 2048 * dtype.itemsize)
    elif rows:
        assert logits <= 2048 * dtype.itemsize + gradient


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize(("used", "chunks"), [(36, [36]), (37, [16, 16, 5])])
@pytest.mark.parametrize("how", [FORM, KEEP])
def test_chunks_follow_from_memory(impl, how, used, chunks, monkeypatch):
    """And what one chunk holds can be kept for the backward; else the forward forms nothing, 4 rows at a time."""
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 4)
    targets, weight = torch.arange(used), torch.ones(used)

    def run(hidden, head, bias):
        return linear_cross_entropy(hidden, head, targets, weight, bias=bias, impl=impl, **how)

    with Products() as products:
        results(run, make_head(torch.bfloat16, hidden=used), "one")
    logits = [shape[0] for shape in products.shapes if shape[1] == V]
    assert logits == (chunks if how == FORM or len(chunks) == 1 else [4] * 9 + [1] + chunks)


class Zeros(TorchDispatchMode):
    """The most elements that were filled with zeros at once."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2] in ("zeros", "zero_", "fill_", "new_zeros", "zeros_like"):
            self.most = max(self.most, out.numel())
        return out


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_chunk_writes_the_gradient_of_the_weight(impl, dtype, short_chunks):
    """Nothing fills it with zeros, to be read back and added to."""
    tensors = [x.requires_grad_() for x in make_head(dtype)]
    with Products() as products, Zeros() as zeros:
        loss, _ = linear_cross_entropy(*tensors[:2], *make_rows(9, V), bias=tensors[2], rows=ROWS, impl=impl)
        loss.backward()
    assert len([shape for shape in products.shapes if shape[-1] == V]) > 1  # several chunks
    assert zeros.most < V * H


@KERNELS
def test_the_same_bits_again(impl, short_chunks):
    tensors, rows = make_head(), make_rows(9, V)
    first, second = (check(impl, tensors, *rows, "both", rows=ROWS) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("known", [True, False])
def test_nothing_asks_a_tensor_for_its_value(impl, known, monkeypatch):
    monkeypatch.setattr(chunked, "_on_host", lambda x: known)
    tensors = [x.requires_grad_() for x in make_head()]
    with SyncWatch() as watch:
        loss, nll = linear_cross_entropy(*tensors[:2], *make_rows(9, V), bias=tensors[2], rows=ROWS, impl=impl)
        (loss + nll.sum()).backward()
    assert watch.operators > 30 and not watch.seen


# autograd, autocast, torch.compile


@KERNELS
def test_tied_weights(impl):
    at = place(impl)
    embedding = make_head()[1].to(at).requires_grad_()
    ids, (targets, weight) = torch.arange(9, device=at), (x.to(at) for x in make_rows(9, V))
    linear_cross_entropy(embedding[ids], embedding, targets, weight, impl=impl).loss.backward()
    got, embedding.grad = embedding.grad, None
    linear_cross_entropy(embedding[ids], embedding, targets, weight, impl="reference").loss.backward()
    torch.testing.assert_close(got, embedding.grad, rtol=1e-4, atol=1e-4)


@KERNELS
def test_a_second_backward_forms_the_gradients_again(impl):
    at = place(impl)
    tensors = [x.to(at).requires_grad_() for x in make_head()]
    loss, _ = linear_cross_entropy(*tensors[:2], *(x.to(at) for x in make_rows(N, V)), bias=tensors[2], impl=impl)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    second = torch.autograd.grad(3 * loss, tensors)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-5, atol=1e-3)


@KERNELS
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_autocast(impl, upstream):
    """float32 weights under bfloat16: operands are cast as F.linear casts them, gradients return in float32."""
    at, (targets, weight) = place(impl), make_rows(9, V)

    def fast(hidden, head, bias):
        rest = dict(bias=bias, rows=ROWS.to(at), impl=impl)
        with torch.autocast(at.type, torch.bfloat16):
            return linear_cross_entropy(hidden.bfloat16(), head, targets.to(at), weight.to(at), **rest)

    def by_hand(hidden, head, bias):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(hidden.bfloat16(), head, bias, targets, weight, ROWS)

    tensors = make_head()
    got, yardstick = results(fast, [x.to(at) for x in tensors], upstream), results(by_hand, tensors, upstream)
    assert all(got[name].dtype == torch.float32 for name in got)
    exact = [x.bfloat16().double() for x in tensors]

    def true():
        return results(lambda *x: reference.linear_cross_entropy(*x, targets, weight.double(), ROWS), exact, upstream)

    rounding = operand_rounding(true, exact, torch.bfloat16)
    flat = [{name: x[name].flatten() for name in rounding} for x in (got, yardstick, true(), rounding)]
    assert_no_worse(*flat[:3], rounding=flat[3])


@KERNELS
def test_gradients_that_float16_could_not_hold(impl):
    """Weights over a number of tokens, and the loss scale that comes with the upstream gradient."""
    at, (targets, weight) = place(impl), make_rows(9, V)
    weight = weight / 1e9
    hidden, head, _ = make_head(torch.float16)

    def run(function, *tensors):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        (function(*leaves)[0] * 65536.0).backward()
        return {name: x.grad.flatten() for name, x in zip(("hidden", "weight"), leaves, strict=True)}

    rest = (targets.to(at), weight.to(at))
    got = run(lambda h, w: linear_cross_entropy(h, w, *rest, rows=ROWS.to(at), impl=impl), hidden.to(at), head.to(at))
    exact = (targets, weight.double(), ROWS)
    truth = run(lambda h, w: reference.linear_cross_entropy(h, w, None, *exact), hidden.double(), head.double())
    assert truth["weight"].abs().max() > 1e-2
    assert_no_worse(got, run(lambda h, w: plain(h, w, None, targets, weight, ROWS), hidden, head), truth)


@pytest.mark.covering(1)
@ALL
@pytest.mark.parametrize(("upstream", "how"), [("one", FORM), ("both", FORM), ("nll", RECOMPUTE), ("nll", KEEP)])
def test_compiled(impl, upstream, how):
    torch.compiler.reset()  # so many variants of one function are more than it compiles
    at = place(impl)
    rows = [x.to(at) for x in make_rows(9, V)]

    def run(hidden, head, bias):
        rest = dict(bias=bias, rows=ROWS.to(at), impl=impl, **how)
        return linear_cross_entropy(hidden * 2, head, *rows, **rest)

    tensors = [x.to(at) for x in make_head()]
    expected = results(run, tensors, upstream)
    got = results(torch.compile(run, fullgraph=True, backend="aot_eager"), tensors, upstream)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("impl", [CPU])
def test_the_custom_operator_keeps_torchs_rules(impl):
    tensors = [x.requires_grad_() for x in make_head()]
    call = (*tensors, *make_rows(9, V), ROWS, None, 0.0, 0.0, None, torch.float32, impl)
    torch.library.opcheck(
        torch.ops.dllm_kernels.linear_cross_entropy_formed.default,
        (*call, True, True, True, False, None),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


# bad input: the rule and what was got, before anything runs

HIDDEN, HEAD, BIAS = make_head(hidden=2, width=4, vocab=8)
TARGETS, WEIGHT = torch.tensor([1, 2]), torch.ones(2)
BAD = [
    (dict(hidden=[[0.0]]), TypeError, "hidden must be a tensor"),
    (dict(hidden=HIDDEN.double()), TypeError, "float32 or bfloat16 or float16, got float64"),
    (dict(hidden=HIDDEN[0]), ValueError, r"hidden must have shape \[N, H\], got \[4\]"),
    (dict(hidden=HIDDEN[:, :0], weight=HEAD[:, :0]), ValueError, "at least one column"),
    (dict(hidden=HIDDEN[:, :3]), ValueError, r"weight must have shape \[V, 3\], got \[8, 4\]"),
    (dict(weight=HEAD.bfloat16()), TypeError, "weight must be float32, got bfloat16"),
    (dict(weight=HEAD[:0]), ValueError, "vocabulary of 0"),
    (dict(weight=torch.empty(8, 4, device="meta")), ValueError, "weight must be on cpu, got meta"),
    (dict(bias=BIAS[:7]), ValueError, r"bias must have shape \[8\], got \[7\]"),
    (dict(bias=BIAS.half()), TypeError, "bias must be float32, got float16"),
    (dict(targets=TARGETS[:1], row_weight=WEIGHT[:1]), ValueError, "for each of 2 hidden rows, got 1"),
    (dict(targets=torch.tensor([1, 8])), ValueError, "from 0 to 7 where the weight is not 0, got 8 in row 1"),
    (dict(row_weight=-WEIGHT), ValueError, "finite and at least 0, got -1.0 in row 0"),
    (dict(row_weight=WEIGHT * NAN), ValueError, "got nan in row 0"),
    (dict(row_weight=WEIGHT.half()), TypeError, "row_weight must be float32"),
    (dict(rows=torch.tensor([0, 2])), ValueError, "rows must be from 0 to 1 where the weight is not 0, got 2 in row 1"),
    (dict(rows=torch.tensor([0])), ValueError, r"rows must have shape \[2\], got \[1\]"),
    (dict(rows=torch.tensor([0, 1]).int()), TypeError, "rows must be int64"),
    (dict(hidden=HIDDEN[:0], rows=torch.tensor([0, 1])), ValueError, "rows of hidden, which has none"),
    (dict(capacity=1), ValueError, "at most capacity = 1 rows may have a weight, got 2"),
    (dict(capacity=-1), ValueError, "capacity must be at least 0, got -1"),
    (dict(capacity=1.5), TypeError, "capacity must be an integer"),
    (dict(label_smoothing=2), ValueError, "label_smoothing must be at most 1"),
    (dict(softcap=0), ValueError, "softcap must be above 0"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(reduction="mean"), TypeError, "reduction"),
]


@ALL
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(impl, arguments, error, message):
    if impl == "triton" and CUDA:
        pytest.skip("values on a device are not looked at")
    given = {"hidden": HIDDEN, "weight": HEAD, "targets": TARGETS, "row_weight": WEIGHT, "impl": impl}
    with Products() as products, pytest.raises(error, match=message):
        linear_cross_entropy(**given | arguments)
    assert not products.shapes


# natively only


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_chunks_on_a_device(dtype):
    """The weight's gradient in float32 from products of a shorter dtype."""
    check("triton", make_head(dtype, hidden=5000, width=256, vocab=1000), *make_rows(5000, 1000), "both")


@pytest.mark.gpu
def test_no_sync_and_in_a_graph():
    """A bucket of 48 rows for however many have a weight; the weights change between replays."""
    tensors = [x.cuda().requires_grad_() for x in make_head(torch.bfloat16, hidden=64, width=256, vocab=50368)]
    targets, weight = (x.cuda() for x in make_rows(64, 50368))

    def step():
        loss, nll = linear_cross_entropy(*tensors[:2], targets, weight, bias=tensors[2], capacity=48)
        return loss, nll, *torch.autograd.grad(loss, tensors)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for used in (None, 20, 0):
        if used is not None:
            weight[used:] = 0
            expected = step()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    weight.fill_(1)  # more rows than the bucket holds
    graph.replay()
    assert got[0].isnan() and got[3].isnan().any()
