"""p-values for tests of laws, without scipy.

Threshold. Seeds are fixed, so a right program passes for ever and the only bad luck is the author's, once. With about
forty such checks, P_MIN = 1e-4 makes that luck 0.4 %. The sample sizes are chosen so that the wrong laws a sampler can
have (a shifted index, a temperature applied twice, noise shared by two tokens) come out far below 1e-10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

P_MIN = 1e-4


def chi_square_p(counts: Tensor, probability: Tensor) -> float:
    """Pearson's test of counts [C] against probabilities [C]; cells expected below 5 times are merged into one."""
    expected = probability.double() * counts.sum()
    counts = counts.double()
    small = expected < 5
    if small.any():
        counts = torch.cat([counts[~small], counts[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
    statistic = ((counts - expected).square() / expected.clamp_min(1e-300)).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


def ks_p(sample: Tensor) -> float:
    """Kolmogorov and Smirnov's test of a sample [n] against the uniform law on (0, 1); asymptotic, n above 1000."""
    x = sample.double().sort().values
    n = len(x)
    i = torch.arange(n, dtype=torch.float64)
    distance = float(torch.maximum((x - i / n).max(), ((i + 1) / n - x).max()))
    z = (n**0.5 + 0.12 + 0.11 / n**0.5) * distance
    return min(1.0, 2 * sum((-1) ** (j - 1) * math.exp(-2 * j * j * z * z) for j in range(1, 101)))


def binomial_p(successes: int, trials: int, probability: float) -> float:
    """Two-sided p-value of a binomial count, exact sums in log space."""
    k = torch.arange(trials + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    log_pmf = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_pmf += k * math.log(probability) + (n - k) * math.log1p(-probability)
    pmf = log_pmf.exp()
    return min(1.0, 2 * float(torch.minimum(pmf[: successes + 1].sum(), pmf[successes:].sum())))
