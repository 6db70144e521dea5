r"""The weights of masks in the log-likelihood of a target, in closed form.

A masked diffusion model bounds the log-likelihood of a target of n tokens by a sum over the masks S, nonempty sets of
its positions:

.. math::
    L = -\sum_S w(|S|) f(S), \qquad f(S) = \sum_{i \in S} CE_i(S)

where CE_i(S) is the cross-entropy of token i while the positions S are masked.

"llada" (arXiv:2502.09992): the size x is uniform on 1..n, the mask is uniform among those of its size, and the summed
cross-entropy counts n / x times, which over n sizes and C(n, x) masks makes

.. math::
    w(x) = \frac{1}{x \binom{n}{x}}

"dream": a time t is uniform on (0, 1), each token is masked with probability p = (1 - eps) t + eps, and the summed
cross-entropy counts 1 / p times:

.. math::
    w(x) = \int_0^1 p^{x-1} (1-p)^{n-x} dt
         = \frac{1}{1 - eps} \int_{eps}^1 p^{x-1} (1-p)^{n-x} dp
         = \frac{P(B < x)}{(1 - eps)\, x \binom{n}{x}}, \qquad B \sim Binomial(n, eps)

The last step is the incomplete beta function at integers. With eps = 0 both forms are one.
"""

from __future__ import annotations

import math


def size_weights(form: str, n: int, eps: float = 1e-3) -> list[float]:
    """w(x) C(n, x) for x = 1..n: the weight of all masks of a size together, so that no binomial overflows.

    Args:
        form: "llada" or "dream".
        n: tokens that may be masked.
        eps: of the form "dream".

    Example:
        >>> size_weights("llada", 4)
        [1.0, 0.5, 0.3333333333333333, 0.25]
        >>> [round(w, 9) for w in size_weights("dream", 2, eps=0.5)]  # 2 x 2 x 1/8, the integral of 1 - p, and 2 x 3/8
        [0.5, 0.75]
    """
    if form == "llada":
        return [1 / x for x in range(1, n + 1)]
    return [below / ((1 - eps) * x) for x, below in enumerate(_binomial_below(n, eps), start=1)]


def _binomial_below(n: int, eps: float) -> list[float]:
    """P(B < x) for x = 1..n, of B binomial with n draws of probability eps."""
    if eps == 0:
        return [1.0] * n
    total, found = 0.0, []
    for x in range(n):
        log_choose = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
        total += math.exp(log_choose + x * math.log(eps) + (n - x) * math.log1p(-eps))
        found.append(min(total, 1.0))
    return found
