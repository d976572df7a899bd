"""Randomness: laws (repeats, bounds, symmetry), oracles (RFC 8439, mpmath, CKS' sampler, the exact pmf), numbers."""

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clients import randomness
from clients.randomness import (
    MARGIN,
    MAX_VARIANCE,
    SLOTS,
    U_BITS,
    Stream,
    _blocks,
    _bounds,
    _is_below,
    _minus_log,
    discrete_gaussian,
    discrete_laplace,
    gaussian,
    poisson_batches,
)

# Seeds are fixed: a p-value below this is a bug, and was once a chance of one in 10,000 per test.
SURPRISE = 1e-4
VARIANCES = [1, 2, 3, 15, 63, 64, 255, 256, 1000, 10**6 + 3, 10**10, 10**11, 2**40 - 1, MAX_VARIANCE]

variances = st.one_of(st.sampled_from(VARIANCES), st.integers(1, 300), st.integers(1, MAX_VARIANCE))


def pmf(variance: int, y: np.ndarray) -> np.ndarray:
    """P(Y = y) by adding up e^(-y^2 / 2v) to 12 sigma, where e^-72 is left."""
    reach = math.isqrt(144 * variance) + 1
    total = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * variance)).sum()
    return np.asarray(np.exp(-(y**2) / (2 * variance)) / total)


def p_value(drawn: np.ndarray, variance: int, cells: int = 100) -> float:
    """Chi-square of the draws against the pmf, in about `cells` intervals that expect 20 or more."""
    y = np.arange(-10 * math.isqrt(variance) - 12, 10 * math.isqrt(variance) + 13)
    below = np.cumsum(pmf(variance, y))
    at_least = max(1 / cells, 20 / len(drawn))
    cell = np.minimum(below // at_least, (1 - 1e-9) // at_least - 1).astype(int)  # the last cell is larger
    _, cell = np.unique(cell, return_inverse=True)
    assert np.abs(drawn).max() <= y[-1]
    counted = np.bincount(cell[drawn - y[0]], minlength=cell.max() + 1)
    expected = np.bincount(cell, pmf(variance, y)) * len(drawn)
    return float(stats.chisquare(counted, expected * counted.sum() / expected.sum()).pvalue)


@pytest.fixture
def always_slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on no comparison is left to float64."""
    return lambda: monkeypatch.setattr(randomness, "MARGIN", 2.0)


@pytest.fixture
def short_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables that end at one sigma, so that the tails are drawn often; always compared exactly."""
    monkeypatch.setattr(randomness, "REACH", 1)
    _blocks.cache_clear()
    yield
    _blocks.cache_clear()


# --- the stream ---------------------------------------------------------------------------------------


def test_the_keystream_is_chacha20s() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: zero key and nonce, blocks 0 and 1."""
    assert Stream(bytes(32)).bytes(128).hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


def test_seeded_streams_repeat_and_others_differ() -> None:
    streams = [Stream.seeded("a"), Stream.seeded("b"), Stream.seeded(""), Stream.fresh(), Stream.fresh()]
    starts = [stream.bytes(64) for stream in streams]
    assert len(set(starts)) == len(starts)
    assert Stream.seeded("a").bytes(64) == starts[0]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), max_size=8))
def test_no_byte_is_given_twice_or_skipped(sizes: list[int]) -> None:
    """However it is asked, the answers are one keystream, cut; also across the cached zeros."""
    stream = Stream.seeded("cut")
    sizes = [*sizes, (1 << 20) + 1, 5]
    same = b"".join(stream.bytes(n) for n in sizes) == Stream.seeded("cut").bytes(sum(sizes))
    assert same  # pytest would explain a difference of a megabyte


def test_words_are_the_bytes_in_little_endian() -> None:
    whole = Stream.seeded("words").bytes(40)
    stream = Stream.seeded("words")
    wide, narrow = stream.uint64(3), stream.uint32(4)
    assert (wide.dtype, narrow.dtype) == (np.uint64, np.uint32)
    assert wide.tolist() == [int.from_bytes(whole[i : i + 8], "little") for i in (0, 8, 16)]
    assert narrow.tolist() == [int.from_bytes(whole[i : i + 4], "little") for i in (24, 28, 32, 36)]


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(key: bytes) -> None:
    with pytest.raises(ValueError):
        Stream(key)


def test_a_negative_number_of_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Stream.fresh().bytes(-1)


# --- Gaussian, Poisson --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_gaussian_gives_as_many_as_asked(n: int) -> None:
    drawn = gaussian(Stream.seeded("n"))(n, 2.0)
    assert drawn.shape == (n,)
    assert str(drawn.dtype) == "torch.float32"


def test_gaussian_repeats_with_its_seed_and_goes_on() -> None:
    draw, again = gaussian(Stream.seeded("g")), gaussian(Stream.seeded("g"))
    first = draw(50, 1.0)
    assert first.equal(again(50, 1.0))
    second = draw(50, 1.0)
    assert not first.equal(second)
    assert again(50, 3.0).numpy() == pytest.approx(3 * second.numpy(), rel=1e-6)


def test_gaussian_is_normal() -> None:
    std, n = 2.5, 400_000
    drawn = gaussian(Stream.seeded("normal"))(n, std).double().numpy() / std
    assert stats.kstest(drawn, "norm").pvalue > SURPRISE
    assert abs(drawn.mean()) < 4 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3) < 4 * math.sqrt(96 / n)  # Var(Z^4) = 105 - 9
    halves = drawn[: n // 2], drawn[n // 2 :]  # cosines and sines of the same radii
    assert abs(np.corrcoef(*halves)[0, 1]) < 4 / math.sqrt(n / 2)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_gaussian_is_finite_at_the_ends_of_the_uniform(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "uint64", lambda self, n: np.full(n, word, np.uint64))
    drawn = gaussian(Stream.fresh())(4, 1.0)
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 8.6


@pytest.mark.parametrize("q", [0.001, 0.1, 0.5, 0.97])
def test_each_is_in_a_batch_with_probability_q(q: float) -> None:
    n, batches = 2000, 500
    draw = poisson_batches(Stream.seeded(f"poisson {q}"))
    drawn = [draw(n, q) for _ in range(batches)]
    assert stats.binomtest(sum(map(len, drawn)), n * batches, q).pvalue > SURPRISE
    assert all((np.diff(batch) > 0).all() for batch in drawn)
    by_person = np.bincount(np.concatenate(drawn), minlength=n)
    spread = ((by_person - q * batches) ** 2).sum() / (
        batches * q * (1 - q)
    )  # about chi-square with n degrees
    assert 2 * min(stats.chi2.cdf(spread, n), stats.chi2.sf(spread, n)) > SURPRISE
    sizes = np.array([len(batch) for batch in drawn])
    spread = ((sizes - q * n) ** 2).sum() / (n * q * (1 - q))
    assert 2 * min(stats.chi2.cdf(spread, batches), stats.chi2.sf(spread, batches)) > SURPRISE


@pytest.mark.parametrize(
    ("q", "of"),
    [(0.0, 0), (2**-33, 0), (2**-32, 1), (1.999 * 2**-32, 1), (0.1, 429496729), (1 - 2**-53, 2**32 - 1)],
)
def test_the_rate_is_rounded_down(q: float, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who draws the word of - 1 is in, who draws the word `of` is not: `of` words of 2^32 are in."""
    words = np.array([max(of - 1, 0), of], np.uint32)
    monkeypatch.setattr(Stream, "uint32", lambda self, n: words)
    assert poisson_batches(Stream.fresh())(2, q).tolist() == ([0] if of else [])
    assert Fraction(of, 2**32) <= Fraction(q)


def test_a_rate_of_one_gives_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "uint32", lambda self, n: np.full(n, 2**32 - 1, np.uint32))
    assert poisson_batches(Stream.fresh())(3, 1.0).tolist() == [0, 1, 2]


def test_nobody_gives_an_empty_batch() -> None:
    drawn = poisson_batches(Stream.fresh())(0, 0.5)
    assert (drawn.shape, drawn.dtype) == ((0,), np.int64)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_a_rate_out_of_bounds_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="sample rate"):
        poisson_batches(Stream.fresh())(3, q)


# --- discrete Gaussian: laws --------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(variance=variances)
def test_the_table_is_an_envelope(variance: int) -> None:
    """What exactness rests on: all slots are used, blocks join without a gap, and no p(y) is above 1."""
    blocks = _blocks(variance)
    weights, m, last = blocks.weights, blocks.m, len(blocks.weights) - 1
    assert np.bincount(blocks.slots).tolist() == weights.tolist()
    assert len(blocks.slots) == weights.sum() == SLOTS == 2**14
    assert (np.diff(blocks.start) == m).all()
    assert 0 in blocks.start
    assert m & (m - 1) == 0
    assert m <= 2**24
    assert 1 / 8 < m / math.sqrt(variance) <= 1 / 4 or (m == 1 and variance < 64)
    for i, (start, weight) in enumerate(zip(blocks.start.tolist(), weights.tolist(), strict=True)):
        nearest = start if start >= 0 else start + m - 1
        assert (
            _bounds(Fraction(blocks.c, weight) * (2 if i in (0, last) else 1), nearest, variance, 40)[1] < 1
        )


@settings(max_examples=100, deadline=None)
@given(variance=variances)
def test_tails_are_below_the_margin_and_fall_by_half(variance: int) -> None:
    """So float64 may take p for 0 there, and `_in_tail` may stop where u is above p at g = 0."""
    blocks = _blocks(variance)
    for start, weight in ((blocks.start[-1], blocks.weights[-1]), (blocks.start[1] - 1, blocks.weights[0])):
        near, far = (
            _bounds(2 * Fraction(blocks.c, int(weight)), int(y), variance, 40)
            for y in (start, start + np.sign(start) * blocks.m)
        )
        assert near[1] < MARGIN
        assert 2 * far[1] < near[0]
    assert blocks.scale[0] == blocks.scale[-1] == 0
    assert blocks.is_tail(0)
    assert blocks.is_tail(len(blocks.weights) - 1)
    assert not blocks.is_tail(1)


@pytest.mark.parametrize("variance", [1, 2, 10, 64, 1000, 10**10, MAX_VARIANCE])
def test_the_sign_is_fair(variance: int) -> None:
    drawn = discrete_gaussian(Stream.seeded(f"sign {variance}"), 200_000, variance)
    above, below = int((drawn > 0).sum()), int((drawn < 0).sum())
    assert stats.binomtest(above, above + below, 0.5).pvalue > SURPRISE
    assert stats.ks_2samp(drawn[drawn > 0], -drawn[drawn < 0]).pvalue > SURPRISE


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 70_000])
def test_as_many_as_asked_and_the_same_again(n: int) -> None:
    drawn = discrete_gaussian(Stream.seeded("n"), n, 100)
    assert (drawn.shape, drawn.dtype) == ((n,), np.int64)
    assert drawn.tolist() == discrete_gaussian(Stream.seeded("n"), n, 100).tolist()
    if n > 20:
        assert drawn.tolist() != discrete_gaussian(Stream.seeded("m"), n, 100).tolist()


@pytest.mark.parametrize("variance", [0, -1, MAX_VARIANCE + 1, 2**64])
def test_a_variance_out_of_bounds_is_refused_and_nothing_is_drawn(variance: int) -> None:
    stream = Stream.seeded("refused")
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(stream, 5, variance)
    assert stream.bytes(8) == Stream.seeded("refused").bytes(8)


def test_a_negative_number_of_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        discrete_gaussian(Stream.fresh(), -1, 4)


# --- discrete Gaussian: oracles -----------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1, 2, 10, 63, 64, 1000, 5000])
def test_frequencies_are_the_exact_ones(variance: int) -> None:
    drawn = discrete_gaussian(Stream.seeded(f"pmf {variance}"), 1_000_000, variance)
    assert p_value(drawn, variance) > SURPRISE


def test_the_chi_square_notices_an_error_of_one_in_a_hundred() -> None:
    """The oracle itself: a variance of 1010 is not taken for 1000, nor a sign that is -1 in 51 of 100."""
    assert p_value(discrete_gaussian(Stream.seeded("off"), 1_000_000, 1010), 1000) < SURPRISE
    drawn = discrete_gaussian(Stream.seeded("shifted"), 1_000_000, 1000)
    assert p_value(np.where(np.arange(len(drawn)) % 50 == 0, -np.abs(drawn), drawn), 1000) < SURPRISE


@pytest.mark.parametrize("variance", [10**10, 10**11, 2**40 - 1, MAX_VARIANCE])
def test_a_large_variance_is_normal_with_uniform_low_bits(variance: int) -> None:
    """At this width the discrete and the continuous Gaussian differ by less than a KS test can see."""
    n = 1_000_000
    drawn = discrete_gaussian(Stream.seeded(f"large {variance}"), n, variance)
    z = drawn / math.sqrt(variance)
    assert stats.kstest(z, "norm").pvalue > SURPRISE
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.chisquare(np.bincount(drawn & 255, minlength=256)).pvalue > SURPRISE
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 4 / math.sqrt(n)


def bernoulli_exp(gamma: Fraction, rng: random.Random) -> bool:
    """True with probability exp(-gamma), gamma >= 0. CKS, algorithm 1."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1), rng):
            return False
        gamma -= 1
    k = 1
    while rng.randrange(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def cks_laplace(t: int, rng: random.Random) -> int:
    """P(y) proportional to exp(-|y| / t). CKS, algorithm 2 with s = 1."""
    while True:
        u = rng.randrange(t)
        if not bernoulli_exp(Fraction(u, t), rng):
            continue
        v = 0
        while bernoulli_exp(Fraction(1), rng):
            v += 1
        y, negative = u + t * v, rng.random() < 0.5
        if not (negative and y == 0):
            return -y if negative else y


def reference(variance: int, rng: random.Random) -> int:
    """CKS, algorithm 3."""
    t = math.isqrt(variance) + 1
    while True:
        y = cks_laplace(t, rng)
        if bernoulli_exp(Fraction((abs(y) * t - variance) ** 2, 2 * variance * t * t), rng):
            return y


@pytest.mark.parametrize("variance", [1, 7, 100])
def test_it_agrees_with_the_sampler_of_canonne_kamath_and_steinke(variance: int) -> None:
    rng, n = random.Random(variance), 4000
    theirs = np.array([reference(variance, rng) for _ in range(n)])
    ours = discrete_gaussian(Stream.seeded(f"reference {variance}"), 100 * n, variance)
    assert p_value(theirs, variance, cells=40) > SURPRISE  # the oracle is right
    edges = np.unique(np.quantile(ours, np.linspace(0.02, 0.98, 30)))
    table = [np.bincount(np.searchsorted(edges, y), minlength=len(edges) + 1) for y in (ours, theirs)]
    assert stats.chi2_contingency(np.array(table)).pvalue > SURPRISE


@pytest.mark.parametrize("variance", VARIANCES)
def test_float_probabilities_are_within_their_margin(variance: int) -> None:
    """Against mpmath, at random y of every block: the comment at MARGIN claims 2^-44, MARGIN is 2^-40."""
    blocks, rng = _blocks(variance), np.random.default_rng(5)
    block = np.repeat(np.arange(1, len(blocks.weights) - 1), 10)
    y = blocks.start[block] + rng.integers(0, blocks.m, len(block))
    with mpmath.workdps(60):
        for p, i, at in zip(blocks.probability(block, y).tolist(), block.tolist(), y.tolist(), strict=True):
            true = (
                mpmath.mpf(blocks.c)
                / int(blocks.weights[i])
                * mpmath.exp(mpmath.mpf(-at * at) / (2 * variance))
            )
            assert abs(p - true) < 2.0**-44
            assert true < 1


@settings(deadline=None)
@given(
    variance=variances,
    sigmas=st.fractions(-40, 40),
    weight=st.fractions(Fraction(1, 2**14), 2**20),
    digits=st.integers(40, 120),
)
def test_the_exact_bounds_hold_mpmaths_value(
    variance: int, sigmas: Fraction, weight: Fraction, digits: int
) -> None:
    y = round(sigmas * math.isqrt(variance))
    low, high = _bounds(weight, y, variance, digits)
    assert 0 < high - low < high * Fraction(10) ** (5 - digits)
    with mpmath.workdps(digits + 30):
        true = (
            mpmath.mpf(weight.numerator)
            / weight.denominator
            * mpmath.exp(mpmath.mpf(-y * y) / (2 * variance))
        )
        assert (
            mpmath.mpf(low.numerator) / low.denominator < true < mpmath.mpf(high.numerator) / high.denominator
        )


# --- discrete Gaussian: what float64 cannot decide ----------------------------------------------------


@pytest.mark.parametrize("variance", [1, 10, 64, 10**11])
def test_float64_and_exact_arithmetic_decide_alike(variance: int, always_slow: Callable[[], None]) -> None:
    """The same seed gives the same integers when every comparison is exact."""
    fast = discrete_gaussian(Stream.seeded("alike"), 5000, variance)
    calls = 0
    exactly = randomness._exactly

    def counted(*args: object) -> int | None:
        nonlocal calls
        calls += 1
        return exactly(*args)  # type: ignore[arg-type]

    always_slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness, "_exactly", counted)
        slow = discrete_gaussian(Stream.seeded("alike"), 5000, variance)
    assert calls >= 5000
    assert fast.tolist() == slow.tolist()


@pytest.mark.parametrize("variance", [1, 1000, 10**11, MAX_VARIANCE])
def test_only_the_one_open_u_is_compared_exactly(variance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around 2^26 p: below its whole part float64 keeps, at it asks, above it drops. In every block, at its ends."""
    blocks = _blocks(variance)
    asked: list[tuple[int, int]] = []
    decided = 0
    monkeypatch.setattr(randomness, "_exactly", lambda _, __, block, y, u: asked.append((y, u)))
    for block in range(1, len(blocks.weights) - 1):
        slot = blocks.slots.tolist().index(block)
        for j in (0, blocks.m - 1):
            y = int(blocks.start[block]) + j
            p = Fraction(blocks.c, int(blocks.weights[block]))
            u = math.floor(_bounds(p, y, variance, 40)[0] * 2**U_BITS)
            if not 0 < u < 2**U_BITS - 1:
                continue  # far out p is below 2^-26
            words = [slot << 50 | each << 24 | j for each in (u - 1, u, u + 1)]
            monkeypatch.setattr(Stream, "uint64", lambda *_, words=words: np.array(words, np.uint64))
            asked.clear()
            assert randomness._proposals_kept(Stream.fresh(), blocks, 3).tolist() == [y]
            assert asked == [(y, u)]  # a neighbour is within the margin once in 8,000; not for these
            decided += 1
    assert decided >= 0.7 * 2 * (len(blocks.weights) - 2)


@pytest.mark.parametrize("further", [0, 1, 2, 3])
def test_further_bits_decide_where_26_do_not(further: int) -> None:
    """u is the one value that leaves U < p open: then U < p in the part of the cases that is left, 2^26 p - u."""
    y, variance = [0, 1, 3, -7][further], 10
    weight = Fraction(5, 7)
    low, high = _bounds(weight, y, variance, 60)
    u = math.floor(low * 2**U_BITS)
    assert u == math.floor(high * 2**U_BITS)
    stream, n = Stream.seeded(f"further {further}"), 3000
    below = sum(_is_below(stream, u, weight, y, variance) for _ in range(n))
    assert stats.binomtest(below, n, float(low * 2**U_BITS - u)).pvalue > SURPRISE
    untouched = Stream.seeded("clear")
    assert _is_below(untouched, u - 1, weight, y, variance)
    assert not _is_below(untouched, u + 1, weight, y, variance)
    assert untouched.bytes(8) == Stream.seeded("clear").bytes(8)


def test_more_than_64_further_bits_are_drawn_where_it_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A U that agrees with p in its first 26 + 64 bits, and then in the last bit of the next 64."""
    weight, y, variance = Fraction(1, 3), 2, 5
    low, high = _bounds(weight, y, variance, 200)
    bits = math.floor(low * 2 ** (U_BITS + 128))
    assert bits == math.floor(high * 2 ** (U_BITS + 128))
    for off, below in ((-1, True), (1, False)):
        words = [(bits + off >> 64) % 2**64, (bits + off) % 2**64]
        monkeypatch.setattr(Stream, "bytes", lambda self, n, words=words: words.pop(0).to_bytes(n))
        assert _is_below(Stream.fresh(), bits >> 128, weight, y, variance) is below
        assert words == []


def test_tails_have_their_share(short_table: None, always_slow: Callable[[], None]) -> None:
    """With tables that end after one sigma, what is beyond comes from `_in_tail` and has the exact frequencies."""
    variance = 4
    blocks = _blocks(variance)
    assert (
        len(blocks.weights) == 2 * 3 + 2
    )  # K = 3, m = 1, and K m^2 / v = 0.75 > ln 2: tails still fall by half
    always_slow()  # after the table is made, which MARGIN enters too
    drawn = discrete_gaussian(Stream.seeded("tails"), 30_000, variance)
    assert ((drawn < -3) | (drawn >= 3)).sum() > 3000
    assert p_value(drawn, variance) > SURPRISE


# --- discrete Laplace ---------------------------------------------------------------------------------

EPSILONS = [0.01, 0.1, 0.3, 1.0, 2.5, 5.0]


def laplace_p_value(drawn: np.ndarray, epsilon: float, cells: int = 100) -> float:
    """Chi-square against tanh(e / 2) exp(-e |y|), in about `cells` intervals that expect 20 or more; tails whole."""
    reach = math.ceil(45 / epsilon)
    y = np.arange(-reach, reach + 1)
    p = math.tanh(epsilon / 2) * np.exp(-epsilon * np.abs(y))
    p[[0, -1]] /= -math.expm1(-epsilon)  # all that is beyond
    at_least = max(1 / cells, 20 / len(drawn))
    cell = np.minimum(np.cumsum(p) // at_least, (1 - 1e-9) // at_least - 1).astype(int)
    _, cell = np.unique(cell, return_inverse=True)
    counted = np.bincount(cell[np.clip(drawn, -reach, reach) + reach], minlength=cell.max() + 1)
    expected = np.bincount(cell, p) * len(drawn)
    return float(stats.chisquare(counted, expected * counted.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_laplace_frequencies_are_the_exact_ones(epsilon: float) -> None:
    drawn = discrete_laplace(Stream.seeded(f"laplace {epsilon}"), 1_000_000, epsilon)
    assert laplace_p_value(drawn, epsilon) > SURPRISE
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / math.sqrt(len(drawn))


def test_the_laplace_chi_square_notices_an_error_of_one_in_a_hundred() -> None:
    drawn = discrete_laplace(Stream.seeded("off"), 1_000_000, 0.303)
    assert laplace_p_value(drawn, 0.3) < SURPRISE
    assert laplace_p_value(np.where(np.arange(len(drawn)) % 50 == 0, -np.abs(drawn), drawn), 0.303) < SURPRISE


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_each_integer_is_e_to_the_epsilon_rarer_than_the_one_nearer_to_0(epsilon: float) -> None:
    """The ratio that the whole promise of ε-DP rests on, on either side."""
    drawn = discrete_laplace(Stream.seeded(f"ratio {epsilon}"), 1_000_000, epsilon)
    for sign in (1, -1):
        for k in range(4):
            near, far = int((drawn == sign * k).sum()), int((drawn == sign * (k + 1)).sum())
            share = math.exp(-epsilon) / (1 + math.exp(-epsilon))
            assert stats.binomtest(far, near + far, share).pvalue > SURPRISE


@pytest.mark.parametrize("epsilon", [12.0, 20.0, 700.0, 1e6])
def test_hardly_any_noise_is_still_the_exact_share(epsilon: float) -> None:
    drawn = discrete_laplace(Stream.seeded(f"little {epsilon}"), 1_000_000, epsilon)
    share = 2 / (math.exp(epsilon) + 1) if epsilon < 700 else 0.0
    assert stats.binomtest(int((drawn != 0).sum()), len(drawn), share).pvalue > SURPRISE


@pytest.mark.parametrize("t", [1, 3, 20])
def test_laplace_agrees_with_the_sampler_of_canonne_kamath_and_steinke(t: int) -> None:
    rng, n = random.Random(t), 4000
    theirs = np.array([cks_laplace(t, rng) for _ in range(n)])
    ours = discrete_laplace(Stream.seeded(f"reference {t}"), 100 * n, 1 / t)
    assert laplace_p_value(theirs, 1 / t, cells=40) > SURPRISE  # the oracle is right
    edges = np.unique(np.quantile(ours, np.linspace(0.02, 0.98, 30)))
    table = [np.bincount(np.searchsorted(edges, y), minlength=len(edges) + 1) for y in (ours, theirs)]
    assert stats.chi2_contingency(np.array(table)).pvalue > SURPRISE


@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.3, 20.0])
def test_float64_and_exact_arithmetic_draw_the_same_laplace(
    epsilon: float, always_slow: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both are floor(-ln U / ε) - floor(-ln U' / ε), by mpmath."""
    fast = discrete_laplace(Stream.seeded("alike"), 300, epsilon)
    exactly, calls = randomness._geometric, 0

    def counted(*args: object) -> int:
        nonlocal calls
        calls += 1
        return exactly(*args)  # type: ignore[arg-type]

    always_slow()
    monkeypatch.setattr(randomness, "_geometric", counted)
    slow = discrete_laplace(Stream.seeded("alike"), 300, epsilon)
    assert calls == 600
    assert fast.tolist() == slow.tolist()
    with mpmath.workdps(50):
        words = Stream.seeded("alike").uint64(600).tolist()
        g = [int(mpmath.floor(-mpmath.log(mpmath.mpf(2 * u + 1) / 2**65) / epsilon)) for u in words]
    assert fast.tolist() == [a - b for a, b in zip(g[:300], g[300:], strict=True)]


def test_float_logarithms_are_within_their_margin() -> None:
    """Against mpmath: the docstring of `_geometrics` claims t 2^-49, MARGIN is 2^-40."""
    rng = np.random.default_rng(3)
    u = np.concatenate([2.0 ** rng.uniform(0, 64, 4000), 2.0**64 - 2.0 ** rng.uniform(11, 63, 1000)])
    with mpmath.workdps(40):
        for each, t in zip(u.tolist(), (-np.log(u * 2.0**-64)).tolist(), strict=True):
            assert abs(t + mpmath.log(mpmath.mpf(each) / 2**64)) <= t * 2.0**-49


@settings(max_examples=100, deadline=None)
@given(u=st.integers(1, 2**64), digits=st.integers(40, 120))
def test_the_exact_logarithm_holds_mpmaths_value(u: int, digits: int) -> None:
    low, high = _minus_log(u, 64, digits)
    assert 0 < high - low < Fraction(10) ** (4 - digits)
    with mpmath.workdps(digits + 30):
        true = -mpmath.log(mpmath.mpf(u) / 2**64)
        assert (
            mpmath.mpf(low.numerator) / low.denominator < true < mpmath.mpf(high.numerator) / high.denominator
        )


def test_a_laplace_tail_is_never_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 zero bits say only that U is below 2^-64: the next decide, and after 128 zeros those after them."""
    monkeypatch.setattr(Stream, "uint64", lambda self, n: np.zeros(n, np.uint64))
    for zeros in (0, 1, 2):
        words = [*[0] * zeros, 2**63] * 2
        monkeypatch.setattr(Stream, "bytes", lambda self, n, words=words: words.pop(0).to_bytes(n))
        assert (
            randomness._geometrics(Stream.fresh(), 2, 0.1).tolist()
            == [math.floor((64 * (1 + zeros) + 1) * math.log(2) / 0.1)] * 2
        )
        assert words == []


def test_bits_beyond_the_first_64_decide_a_geometric_where_they_do_not() -> None:
    """u is the one value that leaves G >= j open: it is, in the part of the cases that is left."""
    epsilon, j = Fraction(0.3), 7
    with mpmath.workdps(60):
        boundary = mpmath.exp(-mpmath.mpf(0.3) * j) * 2**64
        u, left = int(mpmath.floor(boundary)), float(boundary - mpmath.floor(boundary))
    stream, n = Stream.seeded("open"), 1000
    drawn = [randomness._geometric(stream, u, epsilon) for _ in range(n)]
    assert set(drawn) == {j - 1, j}
    assert stats.binomtest(drawn.count(j), n, left).pvalue > SURPRISE
    assert randomness._geometric(Stream.seeded("untouched"), u - 1, epsilon) == j
    assert randomness._geometric(Stream.seeded("untouched"), u + 1, epsilon) == j - 1


@pytest.mark.parametrize("n", [0, 1, 33, 70_000])
def test_as_many_laplace_draws_as_asked_and_the_same_again(n: int) -> None:
    drawn = discrete_laplace(Stream.seeded("n"), n, 0.1)
    assert (drawn.shape, drawn.dtype) == ((n,), np.int64)
    assert drawn.tolist() == discrete_laplace(Stream.seeded("n"), n, 0.1).tolist()
    if n > 20:
        assert drawn.tolist() != discrete_laplace(Stream.seeded("m"), n, 0.1).tolist()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 1e-7, math.inf, math.nan])
def test_an_epsilon_out_of_bounds_is_refused_and_nothing_is_drawn(epsilon: float) -> None:
    stream = Stream.seeded("refused")
    with pytest.raises(ValueError, match="epsilon must be at least 1e-06 and finite"):
        discrete_laplace(stream, 5, epsilon)
    with pytest.raises(ValueError, match="0 or more"):
        discrete_laplace(stream, -1, 1.0)
    assert stream.bytes(8) == Stream.seeded("refused").bytes(8)
