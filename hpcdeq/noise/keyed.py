"""Random numbers that depend on a key alone: not on who draws them, when, or in what order."""

from __future__ import annotations

import hashlib
import operator

import numpy as np


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


def stable_hash(text: str) -> int:
    """Integer from 0 to 2**63 - 1 of a text (a scene's name), the same in every process, unlike ``hash``."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
