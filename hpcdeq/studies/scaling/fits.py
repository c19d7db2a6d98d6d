"""What a step of training and a pass of bulk denoising take: models fitted to the measured points, and checked on others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hpcdeq.studies.scaling.microfits import Network, Storage, fit_network, fit_storage
from hpcdeq.studies.scaling.regression import (
    DRAWS,
    Estimate,
    Floats,
    NoFit,
    TwoCosts,
    generator,
    have_scatter,
    medians,
    two_costs,
)
from hpcdeq.studies.scaling.results import Result


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a prediction is asked for."""

    world: int
    """Processes."""
    amount: float
    """Blocks of a step, or megapixels of a pass, of all processes."""
    largest_part: float
    """Of it, what the process with the most to do does."""
    crowding: float = 1.0
    """How many compute on a core, or on a GPU, at a time."""
    machines: int = 1
    exchanged: tuple[int, ...] = ()
    """Bytes of every all-reduce of a training step."""
    half_exchanged: tuple[int, ...] = ()
    """Bytes of every other exchange, which takes half of the time."""

    @classmethod
    def of(cls, point: Result) -> Case:
        """Ask for a point as it was measured."""
        return cls(
            world=point.world,
            amount=point.amount,
            largest_part=point.largest_part,
            crowding=point.crowding,
            machines=len(point.hosts),
            exchanged=point.exchanged,
            half_exchanged=point.half_exchanged,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StepModel:
    """Seconds of a training step: ``fixed + per_block * largest_part * max(1, crowding) + communication``.

    Processes that share a core (or a GPU) are taken to share it fairly. Communication is that of the microbenchmark, for the
    bytes of the step, and none of it is hidden behind the computing.
    """

    costs: TwoCosts
    """Seconds of any step, and seconds of a block."""
    network: Network
    points: tuple[Result, ...]
    """It was fitted to."""

    @property
    def fixed(self) -> Estimate:
        """Seconds of a step, however few its blocks."""
        return self.costs.first

    @property
    def per_block(self) -> Estimate:
        """Seconds of a block."""
        return self.costs.second

    @property
    def scatter(self) -> bool:
        """Whether the draws tell the scatter of the repeats."""
        return self.costs.scatter

    def draws(self, case: Case) -> Floats:
        """Return the seconds of a step, over the draws."""
        computing = self.costs.draws(1.0, case.largest_part * max(1.0, case.crowding))
        return computing + _communication(self.network, case)

    def seconds(self, case: Case) -> Estimate:
        """Return the seconds of a step."""
        return Estimate.of(self.draws(case), self.scatter)


@dataclass(frozen=True, kw_only=True, eq=False)
class PassModel:
    """Seconds of a pass: ``fixed + per_megapixel * largest_part * max(1, crowding)``, or what the storage takes if longer.

    Reading, computing and writing overlap, so the slowest of the three counts. Processes that share a core (or a GPU) are taken to
    share it fairly.
    """

    costs: TwoCosts
    """Seconds of any pass, and seconds of a megapixel."""
    reading: Storage | NoFit
    writing: Storage | NoFit
    bands: int
    points: tuple[Result, ...]
    """It was fitted to."""

    @property
    def fixed(self) -> Estimate:
        """Seconds of a pass, however small its scenes."""
        return self.costs.first

    @property
    def per_megapixel(self) -> Estimate:
        """Seconds of a megapixel, all bands."""
        return self.costs.second

    @property
    def scatter(self) -> bool:
        """Whether the draws tell the scatter of the repeats."""
        return self.costs.scatter

    def storage_draws(self, case: Case) -> Floats:
        """Return the seconds that the storage takes at least to read the scenes and to write them, over the draws."""
        size = case.amount * 1e6 * self.bands * np.dtype(np.float32).itemsize
        least: Floats = np.zeros(1 + DRAWS)
        for storage in (self.reading, self.writing):
            if isinstance(storage, Storage):
                least = np.maximum(least, storage.draws(size, case.world))
        return least

    def draws(self, case: Case) -> Floats:
        """Return the seconds of a pass, over the draws."""
        computing = self.costs.draws(1.0, case.largest_part * max(1.0, case.crowding))
        return np.maximum(computing, self.storage_draws(case))

    def seconds(self, case: Case) -> Estimate:
        """Return the seconds of a pass."""
        return Estimate.of(self.draws(case), self.scatter)


Model = StepModel | PassModel


def fit(points: Iterable[Result]) -> Model | NoFit:
    """Fit a model of the time to the points of a series that are not crowded.

    Parameters
    ----------
    points
        Of one series.

    Returns
    -------
    StepModel | PassModel | NoFit
        Why not, if there is too little to fit it to.
    """
    given = tuple(points)
    assert len({(point.work, point.series) for point in given}) <= 1, "one series at a time"
    chosen = tuple(sorted((p for p in given if not p.crowded), key=lambda p: (p.world, p.nodes, p.scale)))
    if not chosen:
        return NoFit(
            "processes shared a core or a GPU at every point, and such points are not fitted"
            if given
            else "there are no points"
        )
    amounts = np.array([[1.0, point.largest_part] for point in chosen])
    values = medians(chosen, generator("repeats"))
    scatter = have_scatter(chosen)
    unit = "blocks" if chosen[0].work == "train" else "megapixels"
    too_alike = NoFit(
        f"at all points without crowding the busiest process does about as much ({amounts[:, 1].max():g} {unit}), so that what "
        "a step or a pass costs anyway cannot be told from what its work costs; measure a strong curve too"
    )
    if chosen[0].work == "train":
        network = fit_network(chosen)
        if isinstance(network, NoFit):
            return network
        known = np.stack([_communication(network, Case.of(point)) for point in chosen], axis=1)
        costs = two_costs(amounts, values, scatter, known)
        return too_alike if costs is None else StepModel(costs=costs, network=network, points=chosen)
    costs = two_costs(amounts, values, scatter)
    if costs is None:
        return too_alike
    return PassModel(
        costs=costs,
        reading=fit_storage(chosen, "read"),
        writing=fit_storage(chosen, "write"),
        bands=chosen[0].bands,
        points=chosen,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """A measured point, and what was predicted for it without it."""

    point: Result
    predicted: Estimate

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted.value / self.point.median - 1

    @property
    def crowded(self) -> bool:
        """Whether processes shared a core or a GPU at this point."""
        return self.point.crowded


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """A model of some points of a series, checked on the others."""

    fitted_to: str
    """Which points, in words."""
    model: Model
    checks: tuple[Check, ...]
    """Of all other points, by the number of processes."""


def held_out(points: Iterable[Result]) -> list[HeldOut] | NoFit:
    """Fit the smaller points of a series and predict the others; and fit the strong ones and predict the others.

    Microbenchmarks are those of the fitted points too: nothing of a predicted point is used but its size and load.

    Parameters
    ----------
    points
        Of one series.

    Returns
    -------
    list[HeldOut] | NoFit
        A check for every number of processes w, fitted to the points of up to w, that leaves a point over, and one fitted to the
        strong curve; where the fitted points are the same, one of them. Why there is none, otherwise.
    """
    given = sorted(points, key=lambda p: (p.world, p.nodes, p.scale))
    uncrowded = [point for point in given if not point.crowded]
    ways = [("points of the strong curve", [point for point in uncrowded if point.scale == 1])]
    for world in sorted({point.world for point in uncrowded}):
        name = f"points of up to {world} process" + "es" * (world > 1)
        ways.append((name, [point for point in uncrowded if point.world <= world]))

    found: list[HeldOut] = []
    reason = NoFit("there are no points without crowding" if given else "there are no points")
    for name, used in ways:
        if not used:
            continue
        others = [point for point in given if not any(point is other for other in used)]
        model = fit(used)
        if isinstance(model, NoFit):
            reason = model
        elif not others:
            reason = NoFit("every point is needed for the fit; none is left to check it on")
        elif not any(each.model.points == model.points for each in found):
            checks = tuple(Check(point=p, predicted=model.seconds(Case.of(p))) for p in others)
            found.append(HeldOut(fitted_to=name, model=model, checks=checks))
    return found or reason


def _communication(network: Network, case: Case) -> Floats:
    """Return the seconds of all-reduces of a step, over the draws; none for a single process."""
    link = network.link(case.machines)
    whole = sum((link.draws(size, case.world) for size in case.exchanged), start=np.zeros(1 + DRAWS))
    half = sum((link.draws(size, case.world) for size in case.half_exchanged), start=np.zeros(1 + DRAWS))
    return whole + half / 2
