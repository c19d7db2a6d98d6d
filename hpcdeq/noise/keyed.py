"""Random numbers that depend on a key alone: not on who draws them, when, or in what order."""

from __future__ import annotations

import hashlib
import math
import operator

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 15  # numbers made at once: their temporary arrays stay in the processor's cache


def generator(*key: int) -> np.random.Generator:
    """Random generator of a key, counter-based (Philox), so that all keys' streams are independent.

    Parameters
    ----------
    key
        Any integers, of any size and sign; their number and order matter.

    References
    ----------
    Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as 1, 2, 3*, SC 2011,
    doi:10.1145/2063384.2063405.
    """
    text = ",".join(str(operator.index(part)) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def fill_normal(rng: np.random.Generator, out: NDArray[np.float32]) -> None:
    """Fill a C-contiguous array with standard normal numbers, by the Box-Muller transform of raw bits.

    Several times faster than `numpy.random.Generator.standard_normal`, whose branches the processor cannot vectorise:
    noise must not hold up training. Values lie within 6.8; the last bits are those of the processor's logarithm and cosine.

    References
    ----------
    Box, Muller: *A note on the generation of random normal deviates*, Ann. Math. Statist. 29, 1958,
    doi:10.1214/aoms/1177706645.
    """
    flat = out.reshape(-1)
    assert np.shares_memory(flat, out), "the array must be C-contiguous"
    for begin in range(0, flat.size, _CHUNK):
        values = flat[begin : begin + _CHUNK]
        half = -(-values.size // 2)
        raw = rng.bit_generator.random_raw(half).view(np.uint32)
        uniform = np.multiply(raw, np.float32(2**-32), dtype=np.float32)
        radius, angle = uniform[:half], uniform[half:]
        radius += np.float32(2**-33)  # never 0, whose logarithm is infinite
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= np.float32(2 * math.pi)
        np.multiply(radius, np.cos(angle), out=values[:half])
        rest = values.size - half
        np.multiply(radius[:rest], np.sin(angle[:rest]), out=values[half:])


def stable_hash(text: str) -> int:
    """Integer from 0 to 2**63 - 1 of a text (a scene's name), the same in every process, unlike ``hash``."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
