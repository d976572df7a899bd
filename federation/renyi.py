"""Rényi divergence: of one step, and as a budget at a whole order that is fixed in advance.

One step. Poisson sampling with rate q of a mechanism that adds noise of std z x sensitivity. At a whole
order a the divergence of (1-q) mu_0 + q mu_1 from mu_0 is, term by term of the binomial,

    D_a = log( sum_k C(a,k) (1-q)^(a-k) q^k  E_mu_0[(mu_1/mu_0)^k] ) / (a - 1)

with E_mu_0[(mu_1/mu_0)^k] = exp(k (k-1) / 2 z^2) for the Gaussian (Mironov, Talwar, Zhang 2019,
arXiv:1908.10530, eq. 4) and, exactly, for the discrete Gaussian under a whole shift, whose normaliser does
not change when it is shifted (Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Prop. 5). The other
direction, mu_0 from the mixture, is never larger: Theorem 5 of Mironov et al. asks for an involution that
swaps mu_0 and mu_1 and keeps the measure, and x -> c - x is one for any symmetric noise shifted by c.

A sum of discrete Gaussians is not one. On each coordinate the logarithm of its density differs from that
of the discrete Gaussian with the summed variance by at most t (Kairouz, Liu, Steinke 2021,
arXiv:2102.06387, Thm. 5: t = 10 sum_{k=1}^{n-1} exp(-2 pi^2 v k / (k+1)) for n shares of variance v), so on
p coordinates every mixture of its shifts is within p t of the same mixture of the discrete Gaussian's, and
D_a grows by at most (2a - 1)/(a - 1) p t in either direction: a densities above, a - 1 below.

Discrete Laplace noise P(k) ~ p^|k|, p = exp(-ε), under a shift by 1 has, at every order a > 1,

    sum_k P(k)^a P(k-1)^(1-a) = (p^(1-a) + p^a) / (1 + p) = 1 + (p^(1-a) - 1)(1 - p^a) / (1 + p)

(two geometric series: k <= 0, where P(k) / P(k-1) = e^ε, and k >= 1, where it is e^-ε). It is computed by
what it exceeds 1 by, so that a small ε does not cancel. k -> 1 - k swaps P(k) and P(k-1), so both directions are the same.

A budget. At one order that is fixed before anything is spent, "stop before the sum of divergences exceeds
B" keeps every adaptive choice within (a, B)-RDP (Feldman & Zrnic 2021, arXiv:2008.11193, Thm. 3.1). RDP becomes (ε, δ)
by Canonne, Kamath, Steinke 2020, Prop. 12.
"""

import functools
import math
import sys

import numpy as np

MOST_ORDER = 1024
_LOG_FACTORIAL = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, MOST_ORDER + 1)))))


@functools.lru_cache(maxsize=65_536)
def rdp(noise_multiplier: float, sample_rate: float, order: int, closure: float = 0.0) -> float:
    """Rényi divergence at whole `order` >= 2 of one step, add-or-remove, the worse direction.

    noise_multiplier: noise std / sensitivity; inf where it is 0. sample_rate: q in (0, 1].
    closure: p t, how far the noise's log density may be from a discrete Gaussian's (see the module), >= 0.
    """
    if not 2 <= order <= MOST_ORDER or order != int(order):
        raise ValueError(f"order must be a whole number from 2 to {MOST_ORDER}, got {order!r}")
    q, a, z = sample_rate, order, noise_multiplier
    half = 0.5 / z / z if z > 0 else math.inf  # z * z may overflow
    apart = (2 * a - 1) / (a - 1) * closure
    if not a * (a - 1) * half < math.inf:
        return math.inf
    if q == 1:
        return a * half + apart
    k = np.arange(2, a + 1)
    moment = np.maximum(k * (k - 1) * half, sys.float_info.min)  # 0 would become NaN, which no budget refuses
    chosen = _LOG_FACTORIAL[a] - _LOG_FACTORIAL[k] - _LOG_FACTORIAL[a - k]
    binomial = chosen + k * math.log(q) + (a - k) * math.log1p(-q)
    # the binomial weights sum to 1, so only what exceeds 1 is summed: nothing cancels when z is large
    log_terms = binomial + moment + np.log(-np.expm1(-moment))
    peak = float(log_terms.max())
    log_excess = peak + math.log(float(np.exp(log_terms - peak).sum()))
    return float(np.logaddexp(0.0, log_excess)) / (a - 1) + apart


def laplace(epsilon: float, order: float) -> float:
    """Rényi divergence at any `order` > 1, inf too, of one whole number with discrete Laplace noise, moved by 1.

    Exact, in (0, epsilon], and at most order epsilon^2 / 2. `epsilon` above 0 is that of the noise.
    """
    if not order > 1:
        raise ValueError(f"order must be above 1, got {order!r}")
    if order == math.inf:
        return epsilon
    upper, lower = (order - 1) * epsilon, order * epsilon
    excess = (
        upper + math.log(-math.expm1(-upper)) + math.log(-math.expm1(-lower)) - math.log1p(math.exp(-epsilon))
    )
    return min(epsilon, float(np.logaddexp(0.0, excess)) / (order - 1))


def closure(share_variance: float, shares: int, dimension: int) -> float:
    """p t for the sum of `shares` discrete Gaussians of variance `share_variance` (grid steps squared)."""
    if shares == 1:
        return 0.0
    k = np.arange(1, shares)
    return float(dimension * 10 * np.exp(-2 * math.pi**2 * share_variance * k / (k + 1)).sum())


def rdp_budget(epsilon: float, delta: float, order: int) -> float:
    """The most divergence at `order` that is (epsilon, delta)-DP; below 0 where the order cannot show it."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def epsilon_at(divergence: float, delta: float, order: int) -> float:
    """ε at `delta` of a `divergence` at `order`, >= 0: the inverse of `rdp_budget`."""
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


@functools.lru_cache(maxsize=256)
def filter_order(epsilon: float, delta: float) -> int:
    """The whole order at which a budget (epsilon, delta) admits most Gaussian noise: chosen before spending.

    Gaussian divergence is proportional to the order, so it is the order where budget / order is largest.
    """
    return max(range(2, MOST_ORDER + 1), key=lambda order: rdp_budget(epsilon, delta, order) / order)
