"""Randomness of a deployed node: one ChaCha20 keystream, and what is drawn from it.

`gaussian` (the noise of DP-SGD, float32) and `poisson_batches` (who is in a batch) are right up to a stated
rounding. `discrete_gaussian` and `discrete_laplace` are exact: from ideal bits every integer would have exactly
its probability.

The Gaussian's method is block and accept (Karney, Sampling exactly from the normal distribution, ACM TOMS 2016,
arXiv:1303.6257) on whole arrays. The integers are cut into blocks of m = 2^b; 64 bits are one proposal:

    14 bits  slot  of a table in which block k holds W_k of the 2^14 slots
    26 bits  u     the first bits of a uniform U in [0, 1)
    24 bits  j     Y = k m + j; the lowest b bits are used

    keep Y if U < p(Y) = c exp(-Y^2 / 2v) / W_k,  c and W_k integers, W_k >= c exp(-y^2 / 2v) for y in block k

Y is proposed with probability W_k / (2^14 m) and kept with p(Y), so it is returned with probability
proportional to exp(-Y^2 / 2v) whatever c, W_k and m are: they decide only how many proposals are kept.
All is integers but p. It is compared in float64 where u decides by more than `MARGIN`; else, about once in
2^26 proposals, in decimal arithmetic with as many more bits of U as it takes (`_is_below`). One slot on
each side stands for all blocks beyond the table (`_in_tail`), so that nothing is cut off.
"""

import builtins
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Self, final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

MAX_VARIANCE = 2**52
LEAST_EPSILON = 1e-6

SLOT_BITS, U_BITS, J_BITS = 14, 26, 24
SLOTS = 1 << SLOT_BITS

# p is known in float64 to within 2^-44: y^2 / 2v is below 48 with a relative error of 2^-52, which is 2^-46 in
# exp; numpy's exp stays below 4 units of 2^-52 (a test measures it); c / W_k and the product add 2^-52.
MARGIN = 2.0**-40
# The last block in the table ends where y^2 >= 77 v. Beyond, p <= 2 c exp(-y^2 / 2v) < 2^15 exp(-38.5) < 2^-40.
REACH = 77
CHUNK = 1 << 15  # proposals at a time: their arrays stay in the cache

_ZEROS = memoryview(bytes(1 << 20))


@final
class Stream:
    """The ChaCha20 keystream (RFC 8439) of a key of 32 bytes, from block 0 on, each byte given once.

    Not for two threads at once, and not across a fork: the copy gives the same bytes again. Make a new one
    for each order. ValueError once 256 GiB are given, where the block counter would start again.
    """

    def __init__(self, key: builtins.bytes) -> None:
        self._cipher = Cipher(ChaCha20(key, nonce=builtins.bytes(16)), mode=None).encryptor()

    @classmethod
    def fresh(cls) -> Self:
        """With a key from the operating system; nobody can repeat it."""
        return cls(os.urandom(32))

    @classmethod
    def seeded(cls, text: str) -> Self:
        """With the key BLAKE2b(text), for simulations only: a node that guards records refuses a seed."""
        return cls(hashlib.blake2b(text.encode(), digest_size=32, person=b"fedrisk stream").digest())

    def uint64(self, n: int) -> np.ndarray:
        """The next 8 n bytes as n uniform integers in [0, 2^64), read-only."""
        return np.frombuffer(self.bytes(8 * n), "<u8")

    def uint32(self, n: int) -> np.ndarray:
        """The next 4 n bytes as n uniform integers in [0, 2^32), read-only."""
        return np.frombuffer(self.bytes(4 * n), "<u4")

    def bytes(self, n: int) -> builtins.bytes:
        """The next n bytes. ValueError where n is below 0."""
        if n < 0:
            raise ValueError(f"the number of draws must be 0 or more, got {n} bytes")
        return self._cipher.update(_ZEROS[:n] if n <= len(_ZEROS) else builtins.bytes(n))


def gaussian(stream: Stream) -> Callable[[int, float], torch.Tensor]:
    """(n, std) -> n draws of N(0, std^2), flat float32.

    Box-Muller in float64 on 53-bit uniforms in (0, 1]: std sqrt(-2 ln u1) (cos, sin)(2 pi u2), so no draw is
    beyond 8.6 std. Rounded to float32, so not proof against attacks on floating-point noise (Mironov, On
    significance of the least significant bits for differential privacy, CCS 2012).
    """

    def draw(n: int, std: float) -> torch.Tensor:
        bits = stream.uint64(2 * ((n + 1) // 2)).reshape(2, -1) >> np.uint64(11)
        uniform = torch.from_numpy((bits + np.uint64(1)) * 2.0**-53)
        radius, angle = (-2.0 * uniform[0].log()).sqrt_().mul_(std), 2.0 * math.pi * uniform[1]
        return torch.cat((radius * angle.cos(), radius * angle.sin()))[:n].float()

    return draw


def poisson_batches(stream: Stream) -> Callable[[int, float], np.ndarray]:
    """(n, q) -> who of n people is in a batch, increasing int64. Each is, with chance q, independently.

    q in [0, 1] is rounded down to a multiple of 2^-32: nobody is drawn more often than is accounted for.
    1 gives everyone. ValueError for another q.
    """

    def draw(n: int, q: float) -> np.ndarray:
        if not 0 <= q <= 1:
            raise ValueError(f"the sample rate must be in [0, 1], got {q}")
        below = int(q * 2.0**32)  # the product is exact, int() rounds down
        return np.flatnonzero(stream.uint32(n) < below)

    return draw


def discrete_gaussian(stream: Stream, n: int, variance: int) -> np.ndarray:
    """n independent draws of the discrete Gaussian N_Z(0, v), int64, exact:

        P(Y = y) = exp(-y^2 / 2v) / (sum over all integers z of exp(-z^2 / 2v))

    (Canonne, Kamath, Steinke, The Discrete Gaussian for Differential Privacy, 2020, arXiv:2004.00010; its
    variance is at most v). v is an integer from 1 to 2^52, so that the table's y^2 fit an int64 and 2v a
    float64. Exact has two limits: the keystream is a cipher's, and a draw beyond an int64 (its probability is
    below exp(-2^72)) is an OverflowError. ValueError for another v and for n < 0.

    How long it takes depends on what is drawn: proposals are rejected, and a few are compared slowly. Who can
    time it learns something about the noise, so whoever sends the result pads the time.
    """
    if not 1 <= variance <= MAX_VARIANCE:
        raise ValueError(f"the variance must be an integer from 1 to 2^52, got {variance}")
    if n < 0:
        raise ValueError(f"the number of draws must be 0 or more, got {n}")
    blocks, drawn, done = _blocks(variance), np.empty(n, np.int64), 0
    while done < n:
        enough = math.ceil((n - done) / blocks.rate * 1.02) + 32
        kept = _proposals_kept(stream, blocks, min(enough, CHUNK))[: n - done]
        drawn[done : done + len(kept)] = kept
        done += len(kept)
    return drawn


def discrete_laplace(stream: Stream, n: int, epsilon: float) -> np.ndarray:
    """n independent draws of the discrete Laplace distribution, int64, exact:

        P(Y = y) = tanh(epsilon / 2) exp(-epsilon |y|)

    for the number that the float64 `epsilon` is, from 10^-6 (Ghosh, Roughgarden, Sundararajan, 2009,
    arXiv:0811.2841; Canonne, Kamath, Steinke, 2020, arXiv:2004.00010, sample it exactly too). Y = G - G', both
    geometric: G = floor(-ln U / epsilon), as G >= j where U <= exp(-epsilon j). The first 64 bits of U decide in
    float64 where that leaves no doubt by more than `MARGIN`; else decimal arithmetic does, with as many more bits as
    it takes (`_geometric`), so that nothing is cut off. Exact has the same two limits as the Gaussian: the keystream,
    and int64, beyond which is an OverflowError. ValueError for another epsilon and for n < 0.

    Nothing is rejected: every draw takes the same bits and time, but for those in doubt (about one in 10^9 at
    epsilon 0.01, and whoever can time those learns which value is close to a boundary of U, not which value).
    """
    if not LEAST_EPSILON <= epsilon < math.inf:
        raise ValueError(f"epsilon must be at least {LEAST_EPSILON:g} and finite, got {epsilon}")
    if n < 0:
        raise ValueError(f"the number of draws must be 0 or more, got {n}")
    drawn = np.empty(n, np.int64)
    for start in range(0, n, CHUNK):
        part = drawn[start : start + CHUNK]
        geometric = _geometrics(stream, 2 * len(part), float(epsilon))
        np.subtract(geometric[: len(part)], geometric[len(part) :], out=part)
    return drawn


# --- geometric draws by inversion ---------------------------------------------------------------------


def _geometrics(stream: Stream, n: int, epsilon: float) -> np.ndarray:
    """n draws with P(G >= j) = exp(-epsilon j), int64.

    U is in [u, u + 1) 2^-64, so t = -ln(u 2^-64) is above -ln U by 1 / u at most. numpy's log is off by less than
    t 2^-49, and the quotient adds 2^-53 of itself: `MARGIN` (2^-40) of t and one of 1 cover both.
    """
    u = stream.uint64(n)
    at_least_1 = np.maximum(u, np.uint64(1)).astype(np.float64)
    t = -np.log(at_least_1 * 2.0**-64)
    slack = MARGIN * (1 + t)
    most = np.floor((t + slack) / epsilon)
    doubtful = np.floor((t - slack - 1 / at_least_1) / epsilon) != most
    drawn: np.ndarray = most.astype(np.int64)
    for i in np.flatnonzero(doubtful | (u == 0)):
        drawn[i] = _geometric(stream, int(u[i]), Fraction(epsilon))
    return drawn


def _geometric(stream: Stream, u: int, epsilon: Fraction) -> int:
    """floor(-ln U / epsilon) for the U in [0, 1) that starts with the 64 bits of u. Exact.

    Further bits of U are drawn, 64 at a time, only while those known do not decide.
    """
    bits, digits = 64, 40
    while True:
        if u:
            high, low = _minus_log(u, bits, digits)[1], _minus_log(u + 1, bits, digits)[0]
            if high // epsilon == max(low, Fraction(0)) // epsilon:
                return int(high // epsilon)
        u, bits, digits = u << 64 | int.from_bytes(stream.bytes(8)), bits + 64, digits + 20


def _minus_log(u: int, bits: int, digits: int) -> tuple[Fraction, Fraction]:
    """Two fractions with -ln(u 2^-bits) between them, about bits x 10^(1 - digits) apart.

    It is bits ln 2 - ln u. Both logarithms are correctly rounded to d digits (decimal's promise), and neither term is
    above `bits`, so each is off by less than bits 10^(1 - d) / 2. The bounds allow twice that.
    """
    context = Context(prec=digits, Emin=MIN_EMIN, Emax=MAX_EMAX)
    value = bits * Fraction(context.ln(Decimal(2))) - Fraction(context.ln(Decimal(u)))
    slack = 2 * bits * Fraction(1, 10 ** (digits - 1))
    return value - slack, value + slack


# --- blocks and their weights -------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class _Blocks:
    """The table of one variance v: K blocks on each side of 0, and a tail at each end.

    Block i is {start_i, ..., start_i + m - 1}, i = 1 ... 2K; the tails are i = 0 and i = 2K + 1.
    """

    variance: int
    m: int
    c: int
    weights: np.ndarray  # W_i, int64; they add up to SLOTS
    start: np.ndarray  # start_i, int64
    scale: np.ndarray  # c / W_i, float64; 0 for a tail, where p is less than MARGIN
    slots: np.ndarray  # SLOTS block numbers, W_i of them are i
    rate: float  # the part of the proposals that is kept

    def probability(self, block: np.ndarray, y: np.ndarray) -> np.ndarray:
        """p(y) of each y in its block, float64, wrong by less than `MARGIN`."""
        p: np.ndarray = np.exp((y * y) / (-2.0 * self.variance)) * self.scale[block]
        return p

    def is_tail(self, block: int) -> bool:
        return block in (0, len(self.weights) - 1)


@lru_cache(maxsize=16)
def _blocks(variance: int) -> _Blocks:
    """m is the power of two in (sigma / 8, sigma / 4], or 1. From 90 to 99.9 % of the proposals are kept.

    A tail has the start of the block after the last and twice its weight, for `_in_tail`. Slots that rounding
    W_k up leaves over go to the block at 0, where they are as right.
    """
    m = 1 << max(0, (variance.bit_length() - 5) // 2)
    k = math.isqrt(REACH * variance) // m + 1  # K; (K m)^2 > 77 v
    start = np.arange(-k - 1, k + 1) * m
    nearest = np.where(start < 0, start + m - 1, start)  # to 0, in each block
    most = np.exp(nearest * nearest / (-2.0 * variance)) * (1 + MARGIN)  # at least the largest of each
    most[[0, -1]] *= 2
    c = int((SLOTS - len(most)) / most.sum())
    weights = np.ceil(c * most).astype(np.int64)
    weights[k + 1] += SLOTS - weights.sum()
    scale = c / weights
    scale[[0, -1]] = 0.0
    slots = np.repeat(np.arange(len(weights)), weights)
    rate = c * math.sqrt(2 * math.pi * variance) / (m * SLOTS)
    return _Blocks(variance, m, c, weights, start, scale, slots, rate)


def _proposals_kept(stream: Stream, blocks: _Blocks, count: int) -> np.ndarray:
    """Those of `count` proposals that are accepted, in order, int64.

    With t = 2^26 p: U < p for certain if u + 1 <= t, U >= p for certain if u >= t.
    """
    words = stream.uint64(count)
    block = blocks.slots[(words >> np.uint64(64 - SLOT_BITS)).view(np.int64)]
    y = blocks.start[block] + (words & np.uint64(blocks.m - 1)).view(np.int64)
    u = ((words >> np.uint64(J_BITS)) & np.uint64((1 << U_BITS) - 1)).view(np.int64)
    above = blocks.probability(block, y) * 2.0**U_BITS - u
    margin = MARGIN * 2.0**U_BITS
    accepted = above > 1 + margin
    for i in np.flatnonzero((above >= -margin) ^ accepted):
        settled = _exactly(stream, blocks, int(block[i]), int(y[i]), int(u[i]))
        accepted[i] = settled is not None
        y[i] = y[i] if settled is None else settled
    kept: np.ndarray = y[accepted]
    return kept


# --- what float64 cannot decide -----------------------------------------------------------------------


def _exactly(stream: Stream, blocks: _Blocks, block: int, y: int, u: int) -> int | None:
    """The proposal's integer if it is accepted, else None."""
    weight = Fraction(blocks.c, int(blocks.weights[block]))
    if blocks.is_tail(block):
        return _in_tail(stream, blocks, weight, y, u)
    return y if _is_below(stream, u, weight, y, blocks.variance) else None


def _in_tail(stream: Stream, blocks: _Blocks, weight: Fraction, y: int, u: int) -> int | None:
    """A proposal from a tail: g blocks further out with chance 2^-(g + 1), g = 0, 1, 2, ...

    So p(Y) = 2^(g + 1) c exp(-Y^2 / 2v) / W. It falls with g, as each m further exp(-Y^2 / 2v) is at most half:
    K m^2 / v > 1 > ln 2. Where u is above p at g = 0, no g need be drawn.
    """
    if u >= _bounds(2 * weight, y, blocks.variance, 40)[1] * 2**U_BITS:
        return None
    g = 0
    while stream.bytes(1)[0] & 1:
        g += 1
    further = y + g * blocks.m if y >= 0 else y - g * blocks.m
    return further if _is_below(stream, u, 2 ** (g + 1) * weight, further, blocks.variance) else None


def _is_below(stream: Stream, u: int, weight: Fraction, y: int, variance: int) -> bool:
    """Whether U < weight exp(-y^2 / 2v), for the U in [0, 1) that starts with the 26 bits of u. Exact.

    Further bits of U are drawn, 64 at a time, only while those known do not decide.
    """
    bits, digits = U_BITS, 40
    while True:
        low, high = _bounds(weight, y, variance, digits)
        if u + 1 <= low * 2**bits:
            return True
        if u >= high * 2**bits:
            return False
        u, bits, digits = u << 64 | int.from_bytes(stream.bytes(8)), bits + 64, digits + 20


def _bounds(weight: Fraction, y: int, variance: int, digits: int) -> tuple[Fraction, Fraction]:
    """Two fractions with weight exp(-y^2 / 2v) between them; a relative 10^(4 - digits) apart, about.

    The quotient x and exp(x) are correctly rounded to d digits (decimal's promise), a relative 10^(1 - d) / 2
    each, so the value is off by (|x| + 1) 10^(1 - d) / 2 to first order. The bounds allow four times that.
    """
    context = Context(prec=digits, Emin=MIN_EMIN, Emax=MAX_EMAX)
    x = context.divide(-y * y, 2 * variance)
    value = weight * Fraction(context.exp(x))
    slack = 2 * (1 - Fraction(x)) * Fraction(1, 10 ** (digits - 1))
    return value * (1 - slack), value * (1 + slack)
