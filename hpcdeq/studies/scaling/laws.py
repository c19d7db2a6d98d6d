"""Scaling curves in one number: the serial fractions of Amdahl and Gustafson."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdeq.studies.scaling.regression import Estimate, NoFit, generator, have_scatter, medians, two_costs
from hpcdeq.studies.scaling.results import Curve, Mode


@dataclass(frozen=True, kw_only=True)
class SerialFraction:
    """The part of the time that more processes do not shorten, of a curve."""

    mode: Mode
    """``strong`` is by Amdahl, ``weak`` by Gustafson."""
    fraction: Estimate
    base: int
    """Processes of the smallest point it was fitted to: ratios of processes refer to it."""
    worlds: tuple[int, ...]
    """Numbers of processes it was fitted to."""

    def speedup(self, world: int) -> float:
        """Return the speed-up over ``base`` processes that the law gives; of a weak curve the scaled one."""
        ratio, serial = world / self.base, self.fraction.value
        return 1 / (serial + (1 - serial) / ratio) if self.mode == "strong" else ratio - serial * (ratio - 1)


def serial_fraction(curve: Curve) -> SerialFraction | NoFit:
    """Fit the serial fraction to the points of a curve that are not crowded.

    Strong curves by Amdahl (1967, doi:10.1145/1465482.1465560): the time at r times the processes is ``serial + parallel / r``.
    Weak curves by Gustafson (1988, doi:10.1145/42411.42415): the scaled speed-up is ``r - s (r - 1)``, so what one process gets
    done in a second is ``(1 - s) + s / r`` of what it gets done at the smallest size. The smallest point is fitted like the others:
    its scatter counts. The interval is from a bootstrap over the repeats.

    Returns
    -------
    SerialFraction | NoFit
        Why not, if fewer than two numbers of processes had a core or a GPU for each.
    """
    points = [point for point in curve.points if not point.crowded]
    worlds = tuple(sorted({point.world for point in points}))
    seconds = medians(points, generator(f"{curve.mode} curve")) if points else np.ones((1, 0))
    ratios = np.array([point.world / worlds[0] for point in points])
    work = np.array([point.amount for point in points])
    values = seconds / work if curve.mode == "strong" else work / seconds / ratios
    # Both laws are a constant and a part that falls as 1 / r.
    costs = two_costs(np.stack([np.ones_like(ratios), 1 / ratios], axis=1), values, have_scatter(points))
    if costs is None:
        return NoFit(
            "a serial fraction needs points at two numbers of processes with a core or a GPU for each; those with one are at: "
            + (", ".join(map(str, worlds)) or "none")
        )
    serial = costs.parameters[:, 0 if curve.mode == "strong" else 1] / costs.parameters.sum(axis=1)
    return SerialFraction(
        mode=curve.mode, fraction=Estimate.of(serial, costs.scatter), base=worlds[0], worlds=worlds
    )
