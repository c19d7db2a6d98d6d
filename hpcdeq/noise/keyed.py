"""Random numbers that depend on a key alone: not on who draws them, when, or in what order."""

from __future__ import annotations

import hashlib
import math
import operator
import threading

import numpy as np
from numpy.typing import NDArray

_CHUNK = (
    1 << 17
)  # numbers made at once: a training block in one go, as every step of NumPy's takes and gives back the lock
# Each thread's scratch: fresh memory for every block would cost more than its noise.
_thread = threading.local()


def generator(*key: int) -> np.random.Generator:
    """Random generator of a key: SFC64, the fastest of NumPy's, started from a 128-bit digest of the key.

    Parameters
    ----------
    key
        Any integers, of any size and sign; their number and order matter.

    References
    ----------
    Doty-Humphrey: *PractRand*, 2014 (sfc64); O'Neill: *Simple portable C++ seed entropy*, 2015 (NumPy's seeding).
    """
    text = ",".join(str(operator.index(part)) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest, "little")))


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
    if not hasattr(_thread, "scratch"):
        _thread.scratch = np.empty(_CHUNK * 3 // 2, np.float32)
    scratch = _thread.scratch
    for begin in range(0, flat.size, _CHUNK):
        values = flat[begin : begin + _CHUNK]
        half = -(-values.size // 2)
        raw = rng.bit_generator.random_raw(half).view(np.uint32)
        radius, angle, cosine = scratch[: 3 * half].reshape(3, half)
        np.multiply(raw[:half], np.float32(2**-32), out=radius, dtype=np.float32)
        np.multiply(raw[half:], np.float32(2 * math.pi * 2**-32), out=angle, dtype=np.float32)
        radius += np.float32(2**-33)  # never 0, whose logarithm is infinite
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        np.cos(angle, out=cosine)
        np.multiply(radius, cosine, out=values[:half])
        np.sin(angle, out=angle)
        rest = values.size - half
        np.multiply(radius[:rest], angle[:rest], out=values[half:])


def stable_hash(text: str) -> int:
    """Integer from 0 to 2**63 - 1 of a text (a scene's name), the same in every process, unlike ``hash``."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
