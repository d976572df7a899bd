"""The arithmetic of secure aggregation: masks modulo 2^bits, shares of seeds, numbers on a grid.

ChaCha20: Nir and Langley, RFC 8439. HKDF-SHA256: Krawczyk and Eronen, RFC 5869. Secret sharing: Shamir,
How to share a secret, CACM 1979, over GF(2^128) as pycryptodome has it (x^128 + x^7 + x^2 + x + 1). The
grid: Kairouz, Liu and Steinke, The distributed discrete Gaussian mechanism, ICML 2021 (arXiv:2102.06387).
Nothing here keeps anything, and `federation.secagg` says who may compute what.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Bits = Literal[32, 64]

SEED = 16  # bytes of a shared seed, and of a share of it
POLYNOMIAL = (1 << 128) | 0b10000111
TAIL = 16  # how many standard deviations of the noise must fit beside the largest sum


def canonical(*parts: object) -> bytes:
    """The one text of `parts` (JSON values, bytes as hex) that is signed, hashed or bound to a key."""
    return json.dumps(parts, separators=(",", ":"), default=bytes.hex).encode()


def derive(secret: bytes, *info: object) -> bytes:
    """HKDF-SHA256 of `secret`: 32 bytes that say nothing about those for any other `info`."""
    return HKDF(SHA256(), 32, salt=None, info=canonical(*info)).derive(secret)


# --- masks --------------------------------------------------------------------------------------------


def add_masks(vector: np.ndarray, plus: Iterable[bytes], minus: Iterable[bytes]) -> np.ndarray:
    """vector + sum PRG(plus) - sum PRG(minus) modulo 2^bits; a new array like `vector`.

    `vector` is uint32 or uint64, 1-D. PRG(key) is the ChaCha20 keystream of a 32-byte key from block 0
    with nonce 0, read as little-endian integers: a key must serve one vector only.
    """
    if vector.dtype not in (np.uint32, np.uint64) or vector.ndim != 1:
        raise ValueError(
            f"a masked vector must be uint32 or uint64, 1-D, got {vector.dtype}, {vector.ndim}-D"
        )
    total = vector.copy()
    zeros, buffer = bytes(total.nbytes), bytearray(total.nbytes)
    stream = np.frombuffer(buffer, total.dtype.newbyteorder("<"))
    for keys, add in ((plus, np.add), (minus, np.subtract)):
        for key in keys:
            Cipher(ChaCha20(key, bytes(16)), None).encryptor().update_into(zeros, buffer)
            add(total, stream, out=total)
    return total


# --- shares -------------------------------------------------------------------------------------------


def recombine(indices: Sequence[int], shares: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Each secret from its t shares: s = sum_j l_j y_j, all secrets at the same t `indices` (from 1).

    `shares[i][j]` is share `indices[j]` of secret i, 16 bytes. With fewer shares than the secret was
    split for, or a wrong one, the result is another, random-looking secret: no error says so.
    """
    if not shares:
        return []
    flat = np.frombuffer(b"".join(b"".join(row) for row in shares), np.uint64)
    words = flat.reshape(len(shares), 1, 2 * len(indices))
    odd = np.bitwise_xor.reduce(words & _weights_matrix(tuple(indices)), axis=2)  # (secrets, 128)
    secrets = np.packbits(np.bitwise_count(odd) & 1, axis=1)
    return [secret.tobytes() for secret in secrets]


def lagrange_at_zero(indices: Sequence[int]) -> list[int]:
    """l_j = prod_{m != j} x_m / (x_j + x_m), in GF(2^128): what weighs share x_j in the secret."""
    if len(set(indices)) < len(indices) or not all(0 < index < 1 << 128 for index in indices):
        raise ValueError("the indices of shares must be distinct and from 1")
    everything = functools.reduce(multiply, indices, 1)
    weights = []
    for mine in indices:
        below = functools.reduce(multiply, (mine ^ other for other in indices if other != mine), mine)
        weights.append(multiply(everything, inverse(below)))
    return weights


def multiply(a: int, b: int) -> int:
    """a b in GF(2^128), lowest bit first. Fast when one of them is small, as an index is."""
    big, small = max(a, b), min(a, b)
    product = 0
    while small:
        if small & 1:
            product ^= big
        big = _times_x(big)
        small >>= 1
    return product


def inverse(a: int) -> int:
    """1 / a in GF(2^128), by Euclid. ZeroDivisionError for 0."""
    if not a:
        raise ZeroDivisionError("0 has no inverse in GF(2^128)")
    r, next_r, s, next_s = POLYNOMIAL, a, 0, 1
    while next_r:
        while (shift := r.bit_length() - next_r.bit_length()) >= 0:
            r ^= next_r << shift
            s ^= next_s << shift
        r, next_r, s, next_s = next_r, r, next_s, s
    return s


def _times_x(a: int) -> int:
    return (a << 1) ^ (POLYNOMIAL if a >> 127 else 0)


@functools.lru_cache(maxsize=8)
def _weights_matrix(indices: tuple[int, ...]) -> np.ndarray:
    """Which bits of the shares make up each bit of the secret: (128, 128 t) bits, in (128, 2 t) uint64.

    y -> l_j y is linear over single bits, so a secret is a product of matrices of bits. They run from the
    highest, as in the bytes. Cached: all secrets of a draw have the same indices.
    """
    rows = []
    for weight in lagrange_at_zero(indices):
        images = [weight]
        for _ in range(127):
            images.append(_times_x(images[-1]))
        rows += [image.to_bytes(SEED) for image in reversed(images)]
    bits = np.unpackbits(np.frombuffer(b"".join(rows), np.uint8).reshape(-1, SEED), axis=1)
    return np.ascontiguousarray(np.packbits(bits.T, axis=1)).view(np.uint64)


# --- numbers on a grid --------------------------------------------------------------------------------


def to_grid(values: np.ndarray, steps_per_unit: float, limit: int) -> np.ndarray:
    """`values` in grid steps, int64: round half to even, then clamp each to [-limit, limit].

    What it does to a sensitivity: clamping is 1-Lipschitz and never raises it; rounding moves each of p
    coordinates of two neighbours by at most 1/2 step each, so it adds at most sqrt(p) steps in L2.
    Infinities are clamped, NaN is a ValueError. Where `limit` is no float64 (above 2^53), the clamp is at
    the next smaller one.
    """
    if not (0 < steps_per_unit < math.inf and 0 < limit < 1 << 63):
        raise ValueError(f"a grid needs steps and a limit above 0, got {steps_per_unit!r}, {limit!r}")
    with np.errstate(over="ignore"):
        steps = np.rint(np.asarray(values, np.float64) * steps_per_unit)
    if np.isnan(steps).any():
        raise ValueError("a value is not a number: it has no place on the grid")
    edge = float(limit) if int(float(limit)) <= limit else math.nextafter(float(limit), 0)
    return steps.clip(-edge, edge).astype(np.int64)


def limit_for(bits: Bits, agencies: int, share_std: float) -> int:
    """The largest |coordinate| per agency, in grid steps, whose sum with noise fits signed `bits`.

    n limit + 16 sqrt(n) share_std <= 2^(bits - 1) - 1; `share_std` is the standard deviation of one
    agency's noise, in grid steps. ValueError when not even 1 fits.
    """
    if bits not in (32, 64) or agencies < 1 or not 0 <= share_std < math.inf:
        raise ValueError(f"no limit for {bits!r} bits, {agencies!r} agencies, noise of std {share_std!r}")
    room = (1 << (bits - 1)) - 1 - math.ceil(TAIL * math.sqrt(agencies) * share_std)
    if room < agencies:
        raise ValueError(f"{agencies} agencies with noise of std {share_std} do not fit in {bits} bits")
    return room // agencies


def wrap(vector: np.ndarray, bits: Bits) -> np.ndarray:
    """int64 -> uint32 or uint64, modulo 2^bits."""
    if vector.dtype != np.int64:
        raise ValueError(f"only int64 is wrapped, got {vector.dtype}")
    return vector.astype(np.uint32 if bits == 32 else np.uint64)


def unwrap(vector: np.ndarray) -> np.ndarray:
    """uint32 or uint64 -> the signed int64 in [-2^(bits - 1), 2^(bits - 1)) that it stands for."""
    return vector.view(np.int32 if vector.dtype == np.uint32 else np.int64).astype(np.int64)
