"""What a method is: a row of a table, that can be applied to a noisy scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.models import SparseDenoiser
from hpcdeq.studies.protocols import Protocol

Floats = NDArray[np.float32]
Denoise = Callable[[Floats, float], Floats]
"""(noisy scene ``(band, y, x)``, standard deviation of its noise) -> denoised scene."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of a table."""

    key: str
    """Its name on the command line."""
    title: str
    tables: frozenset[int]
    """The paper's tables that it is a row of; 0 stands for those that the paper does not compare with."""
    source: str
    """The publication."""
    denoiser: Callable[[Protocol], Denoise]
    """Makes it ready to be applied as a protocol says."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What decides its output beside scene, noise and protocol, as JSON values."""
    parameters: int | None = None
    """Learnt numbers."""
    training: str = ""
    """What its training cost; empty if it learns nothing."""
    model: SparseDenoiser | None = None
    sigmas: tuple[float, float] | None = None
    """Least and largest noise level that it was trained at."""
