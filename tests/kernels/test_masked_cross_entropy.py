"""masked_cross_entropy: the reference against independent truth, and the kernels against float64 and plain PyTorch."""

import math
import operator

import pytest
import torch

from dllm_kernels import _impl, masked_cross_entropy
from dllm_kernels.masked_cross_entropy import autograd, reference
from dllm_kernels.testing import assert_no_worse, make_logits, make_rows, plain_cross_entropy, poisoned_memory
from tests.triton_device import CUDA, NO_TRITON
from tests.watch import SyncWatch

CPU = pytest.param("cpu", marks=pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=str(_impl.why_not_cpu())))
TRITON = pytest.param("triton", marks=pytest.mark.skipif(NO_TRITON is not None, reason=str(NO_TRITON)))
KERNELS = pytest.mark.parametrize("impl", [CPU, TRITON])
ALL = pytest.mark.parametrize("impl", ["reference", CPU, TRITON])

# In the interpreter numpy remarks on inf and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {
    "none": {},
    "smoothing": dict(label_smoothing=0.1),
    "z-loss": dict(z_loss=1e-2),
    "softcap": dict(softcap=5.0),
    "all": dict(label_smoothing=0.2, z_loss=1e-4, softcap=30.0),
}
# upstream gradients: of the loss alone (untouched and scaled), of each row's nll, of both
UPSTREAM = {"one": (1.0, None), "scaled": (0.37, None), "nll": (0.0, 0), "both": (1.7, 1)}


def place(impl):
    return torch.device("cuda" if impl == "triton" and CUDA else "cpu")


def objective(loss, nll, upstream):
    """A scalar whose gradient is `upstream`: a factor of the loss, and a draw of factors of each row's nll."""
    factor, seed = UPSTREAM[upstream]
    total = loss * factor if factor else 0.0
    if seed is not None:
        draw = torch.randn(len(nll), generator=torch.Generator().manual_seed(seed)).to(nll.device)
        total = total + (nll * draw.to(nll.dtype)).sum()
    return total


def results(function, logits, upstream):
    """loss, nll and the gradient of the logits."""
    logits = logits.detach().clone().requires_grad_()
    loss, nll = function(logits)
    objective(loss, nll, upstream).backward()
    return {"loss": loss.detach().reshape(1), "nll": nll.detach(), "gradient": logits.grad}


def check(impl, logits, targets, row_weight, upstream="one", **options):
    """Within twice plain PyTorch's error, memory poisoned; returns what the implementation gave."""
    at = place(impl)

    def fast(x):
        return masked_cross_entropy(x, targets.to(at), row_weight.to(at), **options, impl=impl)

    with poisoned_memory():
        got = results(fast, logits.to(at), upstream)
    plain = results(lambda x: plain_cross_entropy(x, targets, row_weight, **options), logits, upstream)
    exact = row_weight.double()
    truth = results(lambda x: reference.masked_cross_entropy(x, targets, exact, **options), logits.double(), upstream)
    assert got["loss"].dtype == got["nll"].dtype == torch.float32 and got["gradient"].dtype == logits.dtype
    if impl == "triton" and _impl.interpreting() and logits.dtype == torch.bfloat16:
        # the interpreter cuts numbers off to bfloat16, each time it stores them: up to two ulp instead of one
        error = (got["gradient"].double() - truth["gradient"]).abs() / truth["gradient"].abs().amax(-1, keepdim=True)
        assert error.nan_to_num().max() <= 2 * torch.finfo(torch.bfloat16).eps
        del truth["gradient"]
    assert_no_worse(got, plain, truth)
    return got


# the reference against enumeration in Python floats, and its gradient against finite differences


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reference_is_the_formula(options):
    logits, labels, weights = make_logits(5, 11), [3, 4, 0, 10, 7], [2.0, 0.0, 1e-3, 1000.0, 1.0]
    loss, nll = masked_cross_entropy(logits, torch.tensor(labels), torch.tensor(weights), **options, impl="reference")
    smoothing, z, cap = (options.get(name, 0.0) for name in ("label_smoothing", "z_loss", "softcap"))
    expected = []
    for row in range(5):
        l = [cap * math.tanh(x / cap) if cap else x for x in logits[row].tolist()]
        lse = math.log(math.fsum(map(math.exp, l)))
        surprise, uniform = lse - l[labels[row]], lse - math.fsum(l) / 11
        expected.append(((1 - smoothing) * surprise + smoothing * uniform + z * lse * lse) * (row != 1))
    assert nll.tolist() == pytest.approx(expected, rel=1e-6)
    assert loss.item() == pytest.approx(math.fsum(map(operator.mul, weights, expected)), rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_reference_gradient(options):
    logits = make_logits(4, 6, scale=1.0).double().requires_grad_()
    targets, weight = torch.tensor([1, -100, 5, 0]), torch.tensor([2.0, 0.0, 0.25, 7.0]).double()
    assert torch.autograd.gradcheck(lambda x: reference.masked_cross_entropy(x, targets, weight, **options), logits)


# the kernels against float64, with the error of plain PyTorch as the measure


# one token; below, at and above a vector and a tile (1024) of the C++ kernel and a block (8192 or 16384) of Triton's
@KERNELS
@pytest.mark.parametrize("vocab_size", [1, 2, 7, 16, 33, 1023, 1024, 1025, 8191, 16385, 30522])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vocabularies(impl, dtype, vocab_size):
    check(impl, make_logits(4, vocab_size, dtype=dtype), *make_rows(4, vocab_size), "both")


@KERNELS
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_options_and_upstream_gradients(impl, dtype, options, upstream):
    check(impl, make_logits(7, 1500, dtype=dtype), *make_rows(7, 1500), upstream, **options)


# from flat to saturated: at 100 the likeliest token has nearly all probability
@KERNELS
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 100.0])
@pytest.mark.parametrize("options", [{}, OPTIONS["all"]], ids=["none", "all"])
def test_scales(impl, scale, options):
    check(impl, make_logits(12, 3000, scale=scale), *make_rows(12, 3000), **options)


@KERNELS
def test_slopes_of_a_softcap(impl):
    """Where tanh is small its slope, 1 - tanh^2, is near 1: an ulp of it and what x / softcap was rounded by remain."""
    logits = torch.linspace(0.1, 3.0, 40)[:, None].repeat(1, 2)  # p is 1/2, and exact
    got = check(impl, logits, torch.zeros(40, dtype=torch.int64), torch.ones(40), softcap=5.0)
    slope = 1 - torch.tanh(logits.double() / 5) ** 2
    error = got["gradient"].cpu().double()[:, 1] / (slope[:, 1] / 2) - 1
    assert error.abs().max() <= 1.5 * torch.finfo(torch.float32).eps


@KERNELS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [5.0, 12.0, 20.0])
def test_a_target_that_is_nearly_certain(impl, dtype, gap):
    """p - 1 is formed in float32: formed after rounding it would be 0 or off by half a unit in the last place of 1."""
    targets, weight = torch.tensor([5, 1800]), torch.tensor([1000.0, 1.0])
    logits = make_logits(2, 2000, scale=0.1).to(dtype)
    logits[[0, 1], targets] = gap + math.log(2000)
    got = check(impl, logits, targets, weight)
    p = logits.double().softmax(-1)[[0, 1], targets]
    slope = got["gradient"].cpu().double()[[0, 1], targets] / weight
    smallest = {torch.float16: 2.0**-24 * 4}.get(dtype, 0.0)  # in float16 1 stands for 1000 / 256
    assert slope.tolist() == pytest.approx((p - 1).tolist(), rel=2 * torch.finfo(dtype).eps + 1e-6, abs=smallest)


@KERNELS
def test_gradients_that_float16_could_not_hold(impl):
    """Weights over a number of tokens, and the loss scale that comes with the upstream gradient."""
    logits, (targets, weight) = make_logits(6, 700, dtype=torch.float16), make_rows(6, 700)
    weight, at = weight / 1e9, place(impl)

    def run(function, x):
        x = x.detach().clone().requires_grad_()
        (function(x)[0] * 65536.0).backward()
        return {"gradient": x.grad}

    got = run(lambda x: masked_cross_entropy(x, targets.to(at), weight.to(at), impl=impl), logits.to(at))
    truth = run(lambda x: reference.masked_cross_entropy(x, targets, weight.double()), logits.double())
    assert truth["gradient"].abs().max() > 1e-2
    assert_no_worse(got, run(lambda x: plain_cross_entropy(x, targets, weight), logits), truth)


# rows


@ALL
@pytest.mark.parametrize("inplace", [False, True])
def test_rows_without_a_weight_are_not_read(impl, inplace):
    at = place(impl)
    logits, (targets, weight) = make_logits(7, 900).to(at), (x.to(at) for x in make_rows(7, 900))
    poisoned = torch.where((weight == 0)[:, None], NAN, logits)

    def run(x):
        loss, nll = masked_cross_entropy(x, targets, weight, inplace=inplace, impl=impl)
        return loss, nll

    clean, dirty = results(lambda x: run(x * 1), logits, "both"), results(lambda x: run(x * 1), poisoned, "both")
    unused = (weight == 0).tolist()
    assert (clean["nll"][unused] == 0).all() and (clean["gradient"][unused] == 0).all()
    assert all(torch.equal(clean[name], dirty[name]) for name in ("loss", "nll", "gradient"))


@ALL
@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_with_a_weight(impl, rows):
    at = place(impl)
    logits = torch.full((rows, 50), NAN, device=at, requires_grad=True)
    loss, nll = masked_cross_entropy(
        logits, torch.full((rows,), -100, device=at), torch.zeros(rows, device=at), impl=impl
    )
    (loss + nll.sum()).backward()
    assert loss.item() == 0 and nll.tolist() == [0.0] * rows and logits.grad.tolist() == [[0.0] * 50] * rows


@ALL
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_no_numbers(impl, dtype):
    logits = make_logits(7, 1500).to(dtype)
    logits[0, 1400] = NAN
    logits[1, 5] = INF
    logits[2] = -INF  # nothing to choose from
    logits[3, 10:] = -INF  # probability 0
    logits[4] = torch.finfo(dtype).min  # finite, if barely
    logits[5, 7] = -INF  # the target cannot be
    targets, weight = torch.tensor([0, 0, 0, 2, 1499, 7, 3]), torch.ones(7)
    at = place(impl)
    got = results(lambda x: masked_cross_entropy(x, targets.to(at), weight.to(at), impl=impl), logits.to(at), "one")
    nll, gradient = got["nll"].cpu(), got["gradient"].cpu()
    assert got["loss"].isnan().all() and nll[:3].isnan().all() and gradient[:3].isnan().all()
    assert not nll[3:].isnan().any() and not gradient[3:].isnan().any()
    assert (gradient[3, 10:] == 0).all() and nll[4].item() == pytest.approx(math.log(1500), rel=1e-6)
    assert nll[5] == INF and gradient[5, 7] == -1


@pytest.mark.parametrize("impl", [TRITON])
def test_labels_and_weights_that_only_a_device_has_seen(impl, monkeypatch):
    """There nothing is read back: what breaks its rule makes its row NaN, and no memory outside the row is touched."""
    monkeypatch.setattr(autograd, "check_values", lambda *_: None)
    targets, weight = torch.tensor([4, -1, 50, 3, 3, 3, -100]), torch.tensor([1.0, 1, 1, -1, NAN, INF, 0])
    at = place(impl)
    x = make_logits(7, 50).to(at)
    got = results(lambda x: masked_cross_entropy(x, targets.to(at), weight.to(at), impl=impl), x, "one")
    assert got["nll"].isnan().tolist() == [False] + [True] * 5 + [False] and got["loss"].isnan()
    assert got["gradient"].isnan().all(-1).tolist() == [False] + [True] * 5 + [False]


# memory, autograd, torch.compile


@KERNELS
def test_in_place(impl):
    at = place(impl)
    logits, (targets, weight) = make_logits(6, 1500).to(at), (x.to(at) for x in make_rows(6, 1500))
    expected = results(lambda x: masked_cross_entropy(x, targets, weight, impl=impl), logits, "both")
    held = []

    def run(x):
        held.append(x * 1)
        return masked_cross_entropy(held[0], targets, weight, inplace=True, impl=impl)

    got = results(run, logits, "both")
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert torch.equal(held[0].detach(), expected["gradient"])  # the gradient lies where the logits lay


@KERNELS
def test_in_place_over_logits_that_someone_needs_is_an_error(impl):
    at = place(impl)
    x = make_logits(2, 40).to(at).requires_grad_()
    loss, _ = masked_cross_entropy(x.exp(), *(t.to(at) for t in make_rows(2, 40)), inplace=True, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@KERNELS
def test_strided_logits(impl):
    wide, rows = make_logits(8, 1200).to(place(impl)), make_rows(4, 777)
    view = wide[::2, 100:877]
    at = place(impl)
    for inplace in (False, True):
        leaf = wide.clone().requires_grad_()
        masked_cross_entropy(
            (leaf * 1)[::2, 100:877], *(t.to(at) for t in rows), inplace=inplace, impl=impl
        ).loss.backward()
        expected = check(impl, view.cpu().contiguous(), *rows)["gradient"]
        torch.testing.assert_close(leaf.grad[::2, 100:877], expected, rtol=1e-6, atol=1e-6)
        assert leaf.grad[1::2].abs().max() == 0


@KERNELS
def test_without_a_gradient_the_logits_are_only_read(impl):
    at = place(impl)
    logits, rows = make_logits(4, 300).to(at), [t.to(at) for t in make_rows(4, 300)]
    expected = masked_cross_entropy(logits.clone().requires_grad_(), *rows, impl=impl)
    before = logits.clone()
    got = masked_cross_entropy(logits, *rows, inplace=True, impl=impl)
    assert not got.loss.requires_grad and torch.equal(logits, before)
    assert torch.equal(got.loss, expected.loss.detach()) and torch.equal(got.nll, expected.nll.detach())


@KERNELS
def test_a_second_backward_says_what_to_do(impl):
    at = place(impl)
    x = make_logits(3, 40).to(at).requires_grad_()
    loss, _ = masked_cross_entropy(x, *(t.to(at) for t in make_rows(3, 40)), impl=impl)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call masked_cross_entropy again"):
        loss.backward()


@pytest.mark.parametrize("impl", [CPU])
def test_the_same_bits_with_any_threads_and_in_any_batch(impl):
    logits, (targets, weight) = make_logits(9, 5000), make_rows(9, 5000)
    together = results(lambda x: masked_cross_entropy(x, targets, weight, impl=impl), logits, "one")
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            one = results(lambda x: masked_cross_entropy(x, targets[4:5], weight[4:5], impl=impl), logits[4:5], "one")
            assert torch.equal(one["nll"][0], together["nll"][4])
            assert torch.equal(one["gradient"][0], together["gradient"][4])
    finally:
        torch.set_num_threads(threads)


@ALL
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_compiled(impl, upstream):
    at = place(impl)
    rows = [t.to(at) for t in make_rows(5, 90)]

    def run(x):
        return masked_cross_entropy(x * 2, *rows, label_smoothing=0.1, inplace=True, impl=impl)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    logits = make_logits(5, 90).to(at)
    got, expected = results(compiled, logits, upstream), results(run, logits, upstream)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("differentiable", [False, True])
def test_the_custom_operator_keeps_torchs_rules(impl, differentiable):
    arguments = (
        make_logits(3, 20).requires_grad_(differentiable),
        *make_rows(3, 20),
        0.1,
        0.0,
        None,
        differentiable,
        impl,
    )
    torch.library.opcheck(
        torch.ops.dllm_kernels.masked_cross_entropy_formed.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("impl", [CPU])
def test_nothing_asks_a_tensor_for_its_value(impl):
    logits, rows = make_logits(6, 200).requires_grad_(), make_rows(6, 200)
    with SyncWatch() as watch:
        loss, nll = masked_cross_entropy(logits, *rows, impl=impl)
        (loss + nll.sum()).backward()
    assert watch.operators > 5 and not watch.seen


@pytest.mark.parametrize("impl", [CPU])
def test_rows_times_vocabulary_beyond_int32(impl):
    # one row read again and again through a stride of 0: addresses small, row x vocabulary beyond 2^31
    rows, logits = 2**31 // 30000 + 2, make_logits(1, 30000)
    weight = torch.zeros(rows)
    weight[-1] = 1
    nll = masked_cross_entropy(logits.expand(rows, 30000), torch.full((rows,), 7), weight, impl=impl).nll
    assert nll[-1].item() == pytest.approx(-logits.log_softmax(-1)[0, 7].item(), rel=1e-6) and nll[:-1].abs().max() == 0


# bad input: the rule and what was got, before anything runs

LOGITS, TARGETS, WEIGHT = make_logits(2, 8), torch.tensor([1, 2]), torch.ones(2)
BAD = [
    (dict(logits=[[0.0]]), TypeError, "must be a tensor"),
    (dict(logits=LOGITS.double()), TypeError, "float32 or bfloat16 or float16, got float64"),
    (dict(logits=LOGITS[0]), ValueError, r"shape \[R, V\], got \[8\]"),
    (dict(logits=LOGITS[:, :0]), ValueError, "at least one token"),
    (dict(logits=make_logits(8, 2).t()), ValueError, "adjacent tokens"),
    (dict(logits=LOGITS[:1].expand(2, 8), inplace=True), ValueError, "must not overlap, got stride 0"),
    (dict(targets=TARGETS.int()), TypeError, "targets must be int64, got int32"),
    (dict(targets=TARGETS[:1], row_weight=WEIGHT[:1]), ValueError, "for each of 2 rows of logits, got 1"),
    (dict(targets=torch.tensor([1, 8])), ValueError, "from 0 to 7 where the weight is not 0, got 8 in row 1"),
    (dict(targets=torch.tensor([-100, 1])), ValueError, "got -100 in row 0"),
    (dict(targets=torch.empty(2, dtype=torch.int64, device="meta")), ValueError, "targets must be on cpu, got meta"),
    (dict(row_weight=torch.ones(3)), ValueError, r"shape \[2\], got \[3\]"),
    (dict(row_weight=torch.ones(2).double()), TypeError, "row_weight must be float32"),
    (dict(row_weight=torch.tensor([1.0, -0.5])), ValueError, "finite and at least 0, got -0.5 in row 1"),
    (dict(row_weight=torch.tensor([NAN, 1.0])), ValueError, "got nan in row 0"),
    (dict(row_weight=torch.tensor([1.0, INF])), ValueError, "got inf in row 1"),
    (dict(row_weight=torch.ones(2, requires_grad=True)), ValueError, "must not require a gradient"),
    (dict(label_smoothing=1.5), ValueError, "at most 1, got 1.5"),
    (dict(label_smoothing=-0.1), ValueError, "at least 0"),
    (dict(z_loss=NAN), ValueError, "z_loss must be finite"),
    (dict(z_loss="1"), TypeError, "z_loss must be a number"),
    (dict(softcap=0.0), ValueError, "above 0"),
    (dict(softcap=-3.0), ValueError, "softcap must be finite and at least 0"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(unknown=1), TypeError, "unknown"),
]


@ALL
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(impl, arguments, error, message):
    if impl == "triton" and CUDA:
        pytest.skip("values on a device are not looked at")
    logits = LOGITS.clone().requires_grad_()
    with pytest.raises(error, match=message):
        masked_cross_entropy(**{"logits": logits, "targets": TARGETS, "row_weight": WEIGHT, "impl": impl, **arguments})
    assert torch.equal(logits.detach(), LOGITS)


# natively only


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [30522, 50368, 126464, 152064])
def test_real_vocabularies(vocab_size, dtype):
    for upstream in UPSTREAM:
        check("triton", make_logits(32, vocab_size, dtype=dtype), *make_rows(32, vocab_size), upstream)


@pytest.mark.gpu
def test_rows_times_vocabulary_beyond_int32_on_a_device():
    vocab_size = 126464
    rows = 2**31 // vocab_size + 5
    logits = torch.randn(rows, vocab_size, dtype=torch.bfloat16, device="cuda")
    targets, weight = torch.randint(vocab_size, (rows,), device="cuda"), torch.ones(rows, device="cuda")
    last = results(lambda x: masked_cross_entropy(x, targets[-3:], weight[-3:]), logits[-3:], "one")
    logits.requires_grad_()
    loss, nll = masked_cross_entropy(logits, targets, weight, inplace=True)
    loss.backward()
    assert torch.equal(nll[-3:].detach(), last["nll"]) and torch.equal(logits.grad[-3:], last["gradient"])


@pytest.mark.gpu
def test_no_sync_and_in_a_graph():
    logits = make_logits(16, 50368, dtype=torch.bfloat16).cuda().requires_grad_()
    targets, weight = (t.cuda() for t in make_rows(16, 50368))

    def step():
        loss, nll = masked_cross_entropy(logits, targets, weight)
        return loss, torch.autograd.grad(loss + nll.sum(), logits)[0]

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for fresh in (False, True):
        if fresh:
            weight.mul_(2)
            expected = step()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
