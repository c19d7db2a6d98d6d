"""Fits of two costs that are never negative, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcdeq.studies.scaling.results import Result

Floats = NDArray[np.float64]

DRAWS = 1000
"""Of a bootstrap. Arrays over draws have one entry more: the first belongs to what was measured, as it is."""

CONFIDENCE = 0.95

APART = 1.1
"""Two costs are told apart only where what one is paid for differs by this factor, compared with the other."""


@dataclass(frozen=True)
class NoFit:
    """Why something cannot be said."""

    reason: str


@dataclass(frozen=True)
class Estimate:
    """A number, and its 95 % confidence interval, where the scatter is known."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, draws: Floats, scatter: bool) -> Estimate:
        """Take the first of ``draws`` as the number, and the percentiles of the others for the interval."""
        value = float(draws[0])
        if not scatter:
            return cls(value)
        tail = (1 - CONFIDENCE) / 2
        # The nearest draw: between two infinite ones there is nothing to interpolate.
        low, high = np.quantile(draws[1:], (tail, 1 - tail), method="nearest")
        return cls(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoCosts:
    """A quantity that is the sum of two costs, each paid for an amount of its own."""

    parameters: Floats
    """(1 + DRAWS, 2)."""
    scatter: bool
    """Whether the draws tell the scatter; otherwise they are all the same."""
    measured: int
    """Measurements it was fitted to."""
    error: float
    """Median over them of abs(fitted / measured - 1)."""
    worst: float
    """Greatest of these."""

    @property
    def first(self) -> Estimate:
        """The first cost."""
        return Estimate.of(self.parameters[:, 0], self.scatter)

    @property
    def second(self) -> Estimate:
        """The second cost."""
        return Estimate.of(self.parameters[:, 1], self.scatter)

    def draws(self, first: float, second: float) -> Floats:
        """Return the sum of the costs for these amounts, over the draws."""
        return first * self.parameters[:, 0] + second * self.parameters[:, 1]


def generator(purpose: str) -> np.random.Generator:
    """Return the random numbers for ``purpose``: always the same, and others for another one."""
    return np.random.default_rng(list(purpose.encode()))


def have_scatter(points: Sequence[Result]) -> bool:
    """Return whether every point was repeated."""
    return all(len(point.seconds) > 1 for point in points)


def medians(points: Sequence[Result], rng: np.random.Generator) -> Floats:
    """Return the median seconds of every point, and of ``DRAWS`` bootstrap draws of its repeats: (1 + DRAWS, points).

    A sample of n scatters less about its own median than about the true one. So the deviations, as ratios, are widened by the power
    sqrt(n / (n - 1)) before drawing (Efron 1979, doi:10.1214/aos/1176344552, and Davison and Hinkley, *Bootstrap Methods and their
    Application*, 1997, section 3.3, for the widening): without it intervals of three repeats are too narrow.
    """
    columns = []
    for point in points:
        seconds, middle, n = np.array(point.seconds), point.median, len(point.seconds)
        wide = middle * (seconds / middle) ** math.sqrt(n / max(n - 1, 1))
        drawn = np.median(wide[rng.integers(n, size=(DRAWS, n))], axis=1)
        columns.append(np.concatenate([[middle], drawn]))
    return np.stack(columns, axis=1)


def redrawn(amounts: Floats, values: Floats, rng: np.random.Generator) -> tuple[Floats, bool]:
    """Return ``values``, and ``DRAWS`` of what they might have been, (1 + DRAWS, points); and whether these tell a scatter.

    For measurements without repeats: what a fit of the two costs leaves over, as a ratio, is dealt anew among them (bootstrap of
    residuals, Efron 1979, doi:10.1214/aos/1176344552), widened for the two parameters that were fitted.
    """
    n = len(values)
    if n <= 2:
        return np.broadcast_to(values, (1 + DRAWS, n)), False
    fitted = amounts @ _nonnegative(amounts / values[:, None], np.ones_like(values))
    if not np.all(fitted > 0):
        return np.broadcast_to(values, (1 + DRAWS, n)), False
    ratios = (values / fitted) ** math.sqrt(n / (n - 2))
    return np.concatenate([values[None], fitted * ratios[rng.integers(n, size=(DRAWS, n))]]), True


def two_costs(amounts: Floats, values: Floats, scatter: bool, known: Floats | float = 0.0) -> TwoCosts | None:
    """Fit ``values = known + amounts @ costs``, with costs that are never negative.

    Relative least squares: the sum of (fitted / measured - 1)^2 is least. So small and large measurements count alike, and one that
    came late by far counts little, because such a deviation never exceeds 1.

    Parameters
    ----------
    amounts
        What the costs are paid for: (points, 2), the first column positive.
    values
        What was measured, positive: (1 + DRAWS, points).
    scatter
        Whether the draws tell the scatter.
    known
        What is known of the values without a fit: like ``values``.

    Returns
    -------
    TwoCosts | None
        None if the points cannot tell the two costs apart.
    """
    if len(amounts) < 2:
        return None
    ratio = amounts[:, 1] / amounts[:, 0]
    if ratio.max() <= APART * ratio.min():
        return None
    parameters = _nonnegative(amounts / values[..., None], 1 - known / values)
    fitted = amounts @ parameters[0] + np.broadcast_to(known, values.shape)[0]
    errors = np.abs(fitted / values[0] - 1)
    return TwoCosts(
        parameters=parameters,
        scatter=scatter,
        measured=len(amounts),
        error=float(np.median(errors)),
        worst=float(errors.max()),
    )


def _nonnegative(columns: Floats, target: Floats) -> Floats:
    """Minimise abs(columns @ x - target)^2 over x >= 0, for two columns: exactly, and for all draws at once.

    ``(..., points, 2), (..., points) -> (..., 2)``. If the least lies outside, one of the two is zero.
    """
    a, b = columns[..., 0], columns[..., 1]

    def alone(column: Floats) -> tuple[Floats, Floats]:
        """Return the cost, if it is the only one, and what it leaves of the target."""
        size = (column * column).sum(-1)
        cost = np.maximum((column * target).sum(-1), 0) / np.where(size > 0, size, 1)
        return cost, ((target - cost[..., None] * column) ** 2).sum(-1)

    only_a, rest_a = alone(a)
    only_b, rest_b = alone(b)
    # Both: b against what a does not explain (Gram-Schmidt keeps more digits than the normal equations).
    size = (a * a).sum(-1)
    shared = (a * b).sum(-1) / size
    own = b - shared[..., None] * a
    own_size = (own * own).sum(-1)
    both_b = (own * target).sum(-1) / np.where(own_size > 0, own_size, 1)
    both_a = (a * target).sum(-1) / size - shared * both_b

    inside = (both_a >= 0) & (both_b >= 0) & (own_size > 0)
    take_a = rest_a <= rest_b
    return np.stack(
        [
            np.where(inside, both_a, np.where(take_a, only_a, 0.0)),
            np.where(inside, both_b, np.where(take_a, 0.0, only_b)),
        ],
        axis=-1,
    )
