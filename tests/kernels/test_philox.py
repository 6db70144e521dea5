"""The random stream: known answers, accuracy against float64, tails, laws.

Every implementation draws these bits (tested beside the kernels), so the laws proved here hold for all of them.
"""

from __future__ import annotations

import math

import pytest
import torch

from dllm_kernels import _impl, draw, gumbel_argmax, philox
from tests.goodness_of_fit import P_MIN, binomial_p, chi_square_p, ks_p

ONES = 0xFFFFFFFF


def tensor(x: int) -> torch.Tensor:
    return torch.tensor(philox.as_int64(x))


def token_noise(seeds: torch.Tensor, positions: torch.Tensor, step: torch.Tensor, n: int) -> torch.Tensor:
    return draw.token_noise(torch.arange(n), seeds, positions, step)


def random_addresses(n: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    word = lambda: torch.randint(0, 2**32, (n,), generator=generator)  # noqa: E731
    return (word() << 32) | word(), word(), word(), word()


# Random123, file kat_vectors, philox4x32 with 10 rounds: counter, key, answer
@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, answer):
    seed = tensor(key[1] << 32 | key[0])
    got = philox.words(seed, *(torch.tensor(c) for c in counter[:3]), stream=counter[3])
    assert tuple(map(int, got)) == answer


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in unbounded integers, after the figure of the paper."""
    x, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def test_words_equal_unbounded_integers():
    seeds, block, position, step = random_addresses(200, seed=1)
    got = torch.stack(philox.words(seeds, block, position, step, stream=3), dim=1)
    assert got.min() >= 0 and got.max() <= ONES
    addresses = torch.stack([seeds, block, position, step], dim=1).tolist()
    for row, (seed, *counter) in zip(got.tolist(), addresses, strict=True):
        assert row == philox_in_python([*counter, 3], [seed % 2**32, seed >> 32 & ONES])


def test_an_address_is_all_that_counts():
    """Broadcast or alone, in any batch; and each coordinate of the address changes the noise."""
    seeds, positions = torch.tensor([5, -1, 2**62]), torch.tensor([0, 7, 2**32 - 1])
    together = token_noise(seeds, positions, torch.tensor([4]), 11)
    for i in range(3):
        alone = token_noise(seeds[i : i + 1], positions[i : i + 1], torch.tensor([4]), 11)
        assert torch.equal(together[i : i + 1], alone)
    base = (torch.tensor([5]), torch.tensor([6]), torch.tensor([4]))
    assert torch.equal(token_noise(*base, 9), token_noise(*base, 23)[:, :9])
    for other in [(6, 6, 4), (5 + 2**32, 6, 4), (5, 7, 4), (5, 6, 5)]:
        assert not (token_noise(*(torch.tensor([x]) for x in other), 64) == token_noise(*base, 64)).any()
    streams = [float(philox.uniform(*base, stream)) for stream in range(4)]
    assert len(set(streams)) == 4


def test_seeds_are_64_bits():
    assert philox.as_int64(2**64 - 1) == -1 and philox.as_int64(-(2**63)) == -(2**63)
    for bad in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            philox.as_int64(bad)
    for bad in (1.0, True, "1"):
        with pytest.raises(TypeError, match="integer"):
            philox.as_int64(bad)


def gumbel_float64(w: int, partner: int) -> float:
    """-log(-log(1 - U)) of the exact 64-bit U, by log1p near zero and by the exact complement elsewhere."""
    n = w << 32 | partner
    if n < 2**63:
        exponential = -math.log1p(-(n + 0.5) * 2.0**-64)
    else:
        exponential = -math.log((2**64 - 1 - n + 0.5) * 2.0**-64)
    return -math.log(exponential)


def test_gumbel_is_accurate_everywhere():
    """Words over all magnitudes, both ends and both sides of the seam at 2^28.

    Bound: U carries 2 roundings (2^-24 each). Through E = -log(1 - U) they grow by U / ((1 - U) E) < 16 near the seam,
    where 1 - U is rounded instead, log_float32 adds 2e-7, the last log turns the relative error of E into an absolute
    one of g and adds 2e-7 |g|: together below 2.5e-6 + 3e-7 |g|.
    """
    generator = torch.Generator().manual_seed(0)
    magnitude = torch.randint(0, 33, (40_000,), generator=generator)
    small = torch.randint(0, 2**32, (40_000,), generator=generator) >> magnitude
    edges = [0, 1, 2, 2**27, 2**28 - 1, 2**28, 2**28 + 1, 2**31 - 1, 2**31, ONES - 1, ONES]
    w = torch.cat([small, ONES - small] + [torch.tensor(edges)] * 3)
    random_partner = torch.randint(0, 2**32, (80_000 + len(edges),), generator=generator)
    partner = torch.cat([random_partner, torch.zeros(len(edges)).long(), torch.full((len(edges),), ONES)])
    got = philox.gumbel_from_words(w, partner)
    truth = torch.tensor([gumbel_float64(*pair) for pair in zip(w.tolist(), partner.tolist(), strict=True)]).double()
    assert got.dtype == torch.float32 and got.isfinite().all()
    error = (got.double() - truth).abs()
    assert (error <= 2.5e-6 + 3e-7 * truth.abs()).all(), f"largest error {error.max():.3g}"


def test_gumbel_tails():
    """The largest and smallest noise there is: U = 2^-65 and 1 - 2^-65."""
    largest, smallest = philox.gumbel_from_words(torch.tensor([0, ONES]), torch.tensor([0, ONES])).tolist()
    assert largest == pytest.approx(65 * math.log(2), rel=1e-6)
    assert smallest == pytest.approx(-math.log(65 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize("threshold", [-3.5, -2.0, 0.0, 5.0, 14.0, 16.7, 18.0, 30.0, 40.0])
def test_tail_has_the_right_mass(threshold):
    """How many of the 2^64 words give g > threshold, by bisection, against 1 - exp(-exp(-threshold)).

    A 24-bit uniform has no mass at all above 16.6. The mass may be off by the factor exp(error of g), and by one word
    in the count; below threshold 0 what lies *under* the threshold is compared, so that both tails are seen.
    """
    low, high = 0, 2**64
    while low < high:  # g falls as the words rise: first number whose g is not above the threshold
        middle = (low + high) // 2
        g = philox.gumbel_from_words(torch.tensor([middle >> 32]), torch.tensor([middle & ONES]))
        low, high = (middle + 1, high) if g > threshold else (low, middle)
    if threshold < 0:
        mass, truth = (2**64 - low) / 2**64, math.exp(-math.exp(-threshold))
        # d log(mass) / d g = exp(-g): an error of g weighs more the further out
        tolerance = math.exp(-threshold) * 5e-6
    else:
        mass, truth, tolerance = low / 2**64, -math.expm1(-math.exp(-threshold)), 2e-5
    assert mass == pytest.approx(truth, rel=tolerance + 1 / max(low, 1))


def test_log_float32():
    generator = torch.Generator().manual_seed(0)
    x = torch.exp(170 * torch.rand(200_000, generator=generator) - 85)
    x = torch.cat([x, 1 + 0.2 * torch.randn(200_000, generator=generator).clamp(-4, 4), torch.tensor([2.0**-126])])
    truth = x.double().log()
    error = (philox.log_float32(x).double() - truth).abs()
    assert (error <= 2e-7 * truth.abs()).all()
    assert float(philox.log_float32(torch.ones(1))) == 0.0


def test_exp_float32():
    """Against float64: below 2^-23, and nothing subnormal. n ln 2 in two parts leaves r an error of half an ulp, the
    polynomial and its last addition one more."""
    x = -87 * torch.rand(400_000, generator=torch.Generator().manual_seed(0))
    seams = (torch.arange(-250, 0) + 0.5) * math.log(2) / 2  # where n changes and in between
    x = torch.cat([x, seams.clamp(min=-87), torch.tensor([-87.0, -1e-3, -1e-30, -1e-45, -0.0, 0.0])])
    got, truth = philox.exp_float32(x), x.double().exp()
    assert ((got.double() - truth).abs() <= 2.0**-23 * truth).all() and (got <= 1).all()
    assert (got >= torch.finfo(torch.float32).tiny).all() and (got[-4:] == 1).all()
    beyond = torch.tensor([torch.tensor(-87.0).nextafter(torch.tensor(-88.0)), -88.0, -1e30, -torch.inf])
    assert philox.exp_float32(beyond).tolist() == [0.0] * 4


def test_uniform_is_uniform():
    n = 200_000
    u = philox.uniform(torch.tensor([1]), torch.arange(n), torch.tensor([0]), philox.RANDOM_CONFIDENCE)
    assert u.dtype == torch.float32 and float(u.min()) > 0 and float(u.max()) < 1
    assert ks_p(u) > P_MIN
    # along each coordinate of the address, cells of 1/256
    zero, many = torch.tensor([0]), torch.arange(20_000)
    for address in [(many, zero, zero), (zero, many, zero), (zero, zero, many), (many << 32, zero, zero)]:
        u = philox.uniform(*address, philox.RANDOM_CONFIDENCE)
        counts = torch.bincount((u * 256).long(), minlength=256)
        assert chi_square_p(counts, torch.full((256,), 1 / 256)) > P_MIN


def test_gumbel_law_and_independence_of_neighbours():
    """exp(-exp(-g)) is uniform; tokens of one block share words pairwise and must not show it."""
    g = token_noise(torch.arange(2_000), torch.tensor([3]), torch.tensor([2]), 128).double()
    u = (-(-g).exp()).exp()
    assert ks_p(u.flatten()) > P_MIN
    n = u[:, 1:].numel()
    for other in (u.roll(1, dims=1), u.roll(2, dims=1), u.roll(3, dims=1), u.roll(1, dims=0)):
        correlation = float(((u - 0.5) * (other - 0.5)).mean() * 12)
        assert abs(correlation) < 4.5 / n**0.5  # 4.5 standard deviations: 7e-6
    assert float(g.mean()) == pytest.approx(0.5772157, abs=4.5 * 1.2825 / g.numel() ** 0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature):
    """gumbel_argmax's reference: 30,000 rows of the same logits against softmax(l / T)."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5, -3.0, 1.9, 0.1, -0.5, -torch.inf, 1.5])
    n = 30_000
    drawn = gumbel_argmax(
        logits.expand(n, -1), temperature=temperature, seeds=11, positions=torch.arange(n), step=3, impl="reference"
    ).token
    counts = torch.bincount(drawn, minlength=len(logits))
    assert counts[9] == 0
    keep = logits > -torch.inf
    assert chi_square_p(counts[keep], (logits / temperature).softmax(0)[keep]) > P_MIN


def test_heavy_tail_is_drawn():
    """One head token, 100,000 tail tokens at logit gap 18: together they have probability 1.5e-3.

    To win, a tail token needs g > 18 + g_head. Noise from 24-bit uniforms ends at 16.6: it would have to meet
    g_head < -1.4 (2 %) *and* be one of the 2^-24 at that end: 2.4 such draws expected here, where 30.4 are right.
    """
    if missing := _impl.why_not_cpu():
        pytest.skip(f"2e9 tokens of noise take minutes without the C++ kernel: {missing}")
    tail, n = 100_000, 20_000
    logits = torch.full((1, tail + 1), -18.0)
    logits[0, 777] = 0.0
    probability = tail * math.exp(-18) / (1 + tail * math.exp(-18))
    drawn = gumbel_argmax(logits.expand(n, -1), temperature=1.0, seeds=torch.arange(n), positions=1, step=0, impl="cpu")
    in_tail = drawn.token != 777
    assert binomial_p(int(in_tail.sum()), n, probability) > P_MIN
    assert len(drawn.token[in_tail].unique()) == int(in_tail.sum())  # 30 of 100,000: a repetition has p = 0.4 %


@pytest.mark.parametrize("vocab_size", [1, 2, 97, 262_144, 2**31])
def test_uniform_tokens_are_the_integer_part_of_v_u(vocab_size):
    """Against Python's integers: floor(V (w 2^32 + w') 2^-64)."""
    positions = torch.arange(500)
    drawn = philox.uniform_token(torch.tensor(7), positions, torch.tensor(3), vocab_size)
    zero = torch.zeros_like(positions)
    w, partner, *_ = philox.words(torch.tensor(7), zero, positions, torch.tensor(3), philox.UNIFORM_TOKENS)
    exact = [vocab_size * (a * 2**32 + b) >> 64 for a, b in zip(w.tolist(), partner.tolist(), strict=True)]
    assert drawn.tolist() == exact and 0 <= min(exact) <= max(exact) < vocab_size


def test_uniform_tokens_are_uniform():
    drawn = philox.uniform_token(torch.tensor(5), torch.arange(200_000), torch.tensor(0), 97)
    assert chi_square_p(torch.bincount(drawn, minlength=97), torch.full((97,), 1 / 97)) > P_MIN


@pytest.mark.parametrize("vocab_size", [0, 2**31 + 1])
def test_uniform_tokens_of_no_vocabulary(vocab_size):
    with pytest.raises(ValueError, match=r"vocab_size must be from 1 to 2\^31"):
        philox.uniform_token(torch.tensor(5), torch.arange(2), torch.tensor(0), vocab_size)
