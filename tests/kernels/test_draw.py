"""The draw in two levels: the specification against its formula, its law, and the C++ kernel bit for bit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dllm_kernels import _impl, draw, gumbel_argmax, linear_gumbel_argmax
from dllm_kernels._linear import linear
from dllm_kernels.testing import draw_scores, make_head, make_logits, make_noise
from tests.formula_of_draws import drawn_token
from tests.goodness_of_fit import P_MIN, chi_square_p

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
IMPL = "cpu" if _impl.why_not_cpu() is None else "reference"

# one token; around a lane's load (4), a row of lanes (128), a block (512), and where a Philox block has the next word
# (4096) and ends (16384)
VOCABULARIES = [1, 3, 4, 5, 127, 129, 513, 2047, 4099, 16388]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def addresses(n: int, seed: int = 3, step: int = 1) -> list[torch.Tensor]:
    return [torch.tensor([seed]), torch.arange(n), torch.tensor([step])]


# the specification


def test_tiles_cut_the_vocabulary():
    tokens = draw.tokens_of(torch.arange(256))
    assert torch.equal(tokens.flatten().sort().values, torch.arange(4096))
    assert torch.equal(draw.tile_of(tokens), torch.arange(256)[:, None].expand(256, 16))
    assert (tokens.diff(dim=1) > 0).all() and (tokens[:, 0].diff() > 0).all()  # both in the order of tokens


def test_noise_of_tiles_is_a_stream_of_its_own():
    noise = draw.tile_noise(torch.arange(512), *addresses(3))
    assert noise.unique().numel() > 3 * 512 - 5  # float32 numbers meet by chance
    assert not (noise == draw.token_noise(torch.arange(512), *addresses(3))).any()


@pytest.mark.covering(1)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("T", [0.2, 1.0, 3.0])
def test_draw_is_the_formula(vocab_size, T):
    logits, noise = make_logits(3, vocab_size), make_noise(3, T)
    where = noise["seeds"], noise["positions"], noise["step"]
    got = draw.draw(logits, T, *where)
    for row in range(3):
        expected = drawn_token(dict(enumerate(logits[row].tolist())), T, *(int(x[row]) for x in where))
        assert got[row] == expected
    assert torch.equal(draw.draw(logits.double(), T, *where), got)


def test_ties_go_to_the_first_tile_and_token(monkeypatch):
    for noise in ("tile_noise", "token_noise"):
        monkeypatch.setattr(draw, noise, lambda number, *where: torch.zeros(1, number.shape[-1]))
    logits = torch.full((1, 3000), -torch.inf)
    logits[0, [2070, 1030, 1031, 1158]] = 2.0  # tile (1, 0, 5) alone; two in tile (0, 2, 1), another in the same
    logits[0, 2070] += math.log(3.0)
    assert draw.draw(logits, 1.0, *addresses(1)).tolist() == [1030]
    logits[0, 2070] += 1e-6
    assert draw.draw(logits, 1.0, *addresses(1)).tolist() == [2070]


def test_scores_tell_what_a_change_of_the_logits_must_reach():
    logits, everything = make_logits(400, 600), torch.arange(600)
    where = addresses(400)
    token, scores = draw.draw(logits, 0.8, *where), draw_scores(logits, 0.8, *where)
    assert torch.equal(scores.argmax(1), token)
    (first, second), (_, rival) = (x.unbind(1) for x in scores.topk(2))
    lead = (first - second)[:, None]
    assert lead.median() > 0.1
    sign = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    assert torch.equal(draw.draw(logits + 0.49 * lead * sign, 0.8, *where), token)
    # a little more in favour of the rival: of its tile, or of it alone in a tile of both
    together = draw.tile_of(rival) == draw.tile_of(token)
    favoured = torch.where(
        together[:, None], everything == rival[:, None], draw.tile_of(everything) == draw.tile_of(rival)[:, None]
    )
    turned = draw.draw(logits + lead * torch.where(favoured, 0.51, -0.51), 0.8, *where)
    assert together.any() and not together.all() and torch.equal(turned[together], rival[together])
    assert torch.equal(draw.tile_of(turned), draw.tile_of(rival))
    assert torch.equal(draw_scores(logits, 0.0, *where), logits)


# its law


def counts(logits, T, n, **options):
    found = torch.zeros(logits.shape[-1], dtype=torch.int64)
    for positions in torch.arange(n).split(20_000):
        many = logits.expand(len(positions), -1)
        drawn = gumbel_argmax(many, temperature=T, seeds=9, positions=positions, step=4, impl=IMPL, **options)
        found += drawn.token.bincount(minlength=len(found))
    return found


# less than a tile's load, ragged tiles, several blocks, more than the tiles of one Philox block
@pytest.mark.parametrize(("vocab_size", "n"), [(3, 20_000), (24, 100_000), (517, 60_000), (2100, 40_000)])
@pytest.mark.parametrize("T", [0.5, 1.0, 2.0])
def test_law(vocab_size, n, T):
    logits = make_logits(1, vocab_size, scale=1.5)
    assert chi_square_p(counts(logits, T, n), (logits[0].double() / T).softmax(-1)) > P_MIN


def test_law_of_the_specification_itself():
    logits, n = make_logits(1, 40, scale=1.5), 20_000
    drawn = draw.draw(logits.expand(n, 40), 0.7, *addresses(n))
    assert chi_square_p(drawn.bincount(minlength=40), (logits[0].double() / 0.7).softmax(-1)) > P_MIN


def test_law_where_tiles_are_unequal():
    """All of a tile's tokens alike beside tiles with a single token: what is wrong with sums shows here."""
    logits = torch.full((1, 1200), -torch.inf)
    logits[0, draw.tokens_of(torch.tensor(7))] = 0.0
    logits[0, [0, 130, 1100]] = torch.tensor([1.0, 2.0, 2.5])
    assert chi_square_p(counts(logits, 1.0, 60_000), logits[0].double().softmax(-1)) > P_MIN


def test_law_when_suppressed_or_cut():
    logits, suppress = make_logits(1, 700, scale=1.0), torch.arange(700) % 3 == 1
    left = logits.masked_fill(suppress, -torch.inf)[0].double()
    assert chi_square_p(counts(logits, 1.0, 40_000, suppress=suppress), left.softmax(-1)) > P_MIN
    cut = left.masked_fill(left < left.topk(30).values[-1], -torch.inf)
    assert chi_square_p(counts(logits, 1.0, 40_000, suppress=suppress, top_k=30), cut.softmax(-1)) > P_MIN


# the kernel, bit for bit

# from temperatures that are clamped and at which the last rounding decides to those at which logits do not count
TEMPERATURES = [1e-38, 1e-30, 1e-12, 1e-3, 0.05, 0.3, 1.0, 2.0, 1e3, 1e20, 1e30, 3e38]


@cpu_kernel
@pytest.mark.covering(1)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 3.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_draws_the_tokens_of_the_specification(scale, dtype):
    for vocab_size, T in itertools.product([*VOCABULARIES, 16_500], TEMPERATURES):
        rows = 2 if vocab_size > 3000 else 8
        logits, noise = (
            make_logits(rows, vocab_size, scale=scale, dtype=dtype),
            make_noise(rows, torch.full((rows,), T)),
        )
        got = gumbel_argmax(logits, **noise, impl="cpu").token
        assert torch.equal(got, gumbel_argmax(logits, **noise, impl="reference").token), (vocab_size, T)


# hidden tokens, other statistics, rows in any order, slices of larger tensors: the draw must not see any of it
@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_with_every_option(dtype):
    vocab_size = 2500
    wide = make_logits(40, vocab_size + 9, dtype=dtype)
    logits, noise = wide[:, 5 : vocab_size + 5], make_noise(40, torch.linspace(-0.2, 2.0, 40))
    some = torch.arange(vocab_size) % 5 == 2
    rows, count = torch.tensor([7, 39, 3, 3, 0, 12]), torch.tensor(5)
    plain = gumbel_argmax(logits, **noise, impl="cpu").token
    assert torch.equal(gumbel_argmax(logits, **noise, statistics="tempered", impl="cpu").token, plain)
    assert torch.equal(gumbel_argmax(logits, **noise, begin_suppress=some, impl="cpu").token, plain)
    for options in (dict(suppress=some), dict(top_k=40), dict(top_p=0.7), dict(suppress=some, top_k=99, top_p=0.9)):
        got, expected = (
            gumbel_argmax(logits, **noise, **options, rows=rows, count=count, impl=impl).token
            for impl in ("cpu", "reference")
        )
        assert torch.equal(got, expected)
        assert got[5] == -1


@cpu_kernel
def test_values_at_the_ends_of_float32():
    """+inf counts as the largest number, and what is above -inf may be drawn whatever T is."""
    logits = torch.full((5, 1400), -math.inf)
    logits[0, 1333] = -3.4e38  # alone: drawn
    logits[1, [17, 700]] = math.inf  # a tie, which noise decides where it is not lost
    logits[2, [5, 900]] = torch.tensor([3.4e38, -3.4e38])
    logits[3, 512:] = math.nan
    logits[3, 3] = 0.0
    logits[4] = 1e-40  # not a normal number
    for T in TEMPERATURES:
        noise = make_noise(5, torch.full((5,), T))
        got = gumbel_argmax(logits, **noise, impl="cpu").token
        assert torch.equal(got, gumbel_argmax(logits, **noise, impl="reference").token)
        assert got[0] == 1333 and got[1] in (17, 700) and got[2] in (5, 900) and got[3] == 3 and 0 <= got[4] < 1400
        assert T > 1e20 or got[2] == 5


# a head's stripes are blocks of tiles; the last one ragged, rows in one to four vectors and in two blocks
@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 20, 70])
def test_the_head_draws_from_the_same_tiles(dtype, rows):
    head, noise = make_head(rows, 24, 2600, dtype=dtype), make_noise(rows, torch.linspace(0, 2, rows))
    expected = gumbel_argmax(linear(*head), **noise, impl="reference").token
    assert torch.equal(linear_gumbel_argmax(*head, **noise, impl="cpu").token, expected)
