"""Sizes that were not measured: projections of the fitted models, and how many nodes are worth paying for.

Nothing here is a measurement. Every result carries what it assumes, to be printed beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpcdeq.studies.scaling.fits import Case, Model, PassModel, StepModel, fit, held_out
from hpcdeq.studies.scaling.microfits import Storage
from hpcdeq.studies.scaling.regression import Estimate, NoFit
from hpcdeq.studies.scaling.results import Mode, Result, Work

LARGEST = 1024
"""Processes of a projection, and nodes of a recommendation, at most."""

SCENE_MEGAPIXELS = 1300 * 1300 / 1e6

SLACK = 0.1
"""A node count is as cheap as the cheapest if it takes no more than this part of node-hours more."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """A size of a projection."""

    world: int
    nodes: int
    seconds: Estimate
    """Of a step; or of the job for a whole archive, its start too."""
    speedup: Estimate
    """How many times as much is done in a second as at the first size."""
    efficiency: Estimate
    """Speed-up over the ratio of processes."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A curve of sizes that were mostly not measured."""

    work: Work
    series: str
    mode: Mode
    of: str
    """What is done, in words."""
    measured_to: int
    """Processes of the largest point of the fit."""
    points: tuple[Projected, ...]
    assumptions: tuple[str, ...]
    """Sentences without which the numbers mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a job costs on some nodes."""

    nodes: int
    processes: int
    seconds: Estimate
    """Of the job."""
    node_hours: Estimate


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a job costs, by the number of nodes."""

    of: str
    """What is done, in words."""
    each: tuple[Choice, ...]
    """On 1, 2, 3, ... nodes."""
    assumptions: tuple[str, ...]


def project(
    points: Iterable[Result], scenes: int = 100_000, megapixels: float = SCENE_MEGAPIXELS
) -> list[Projection] | NoFit:
    """Project a series to 1,024 processes: from the size the study began with, doubled again and again.

    A step of training with the batch of the study (strong), to one block a process and no further, and with its blocks per process
    (weak); bulk denoising for an archive (strong). Times are those of the fitted model
    (`fits.fit`); intervals are its own, from the bootstrap.

    Parameters
    ----------
    points
        Of one series.
    scenes, megapixels
        Of the archive: how many, and height x width of each in millions; of no meaning for training.
    """
    given = tuple(points)
    model = fit(given)
    if isinstance(model, NoFit):
        return model
    checked = _checked(given)
    if isinstance(model, PassModel):
        base = min(point.base for point in model.points)
        cases = [_archive(model, world, scenes, megapixels) for world in _doubled(base, LARGEST)]
        start = _largest(model).start_seconds
        return [_projection(model, "strong", _archive_name(scenes, megapixels), cases, checked, start)]
    found = []
    for base, batch in sorted({(point.base, point.base_load) for point in model.points if point.base_load}):
        part = math.ceil(batch / base)
        strong = [_step(model, world, batch) for world in _doubled(base, min(batch, LARGEST))]
        weak = [_step(model, world, part * world) for world in _doubled(base, LARGEST)]
        found.append(_projection(model, "strong", f"a step of {batch} blocks", strong, checked))
        found.append(_projection(model, "weak", f"a step of {part} blocks a process", weak, checked))
    return found


def choices(points: Iterable[Result], amount: int, megapixels: float = SCENE_MEGAPIXELS) -> Choices | NoFit:
    """Say what a job takes on 1 to 1,024 nodes, with as many processes on a node as at the largest point of the fit.

    The start of the job, as long as at that point, is paid by all nodes. Training is never spread over more processes than its
    batch has blocks.

    Parameters
    ----------
    points
        Of one series.
    amount
        Steps of training, with the batch of the study; or scenes of bulk denoising.
    megapixels
        Height x width of a scene, in millions; of no meaning for training.
    """
    given = tuple(points)
    model = fit(given)
    if isinstance(model, NoFit):
        return model
    checked = _checked(given)
    largest = _largest(model)
    if isinstance(model, StepModel):
        batch, times = largest.base_load, amount
        of = f"{amount:,} steps of {batch} blocks"
        cases = [
            _step(model, min(n * largest.tasks, batch), batch)
            for n in range(1, min(LARGEST, max(1, batch // largest.tasks)) + 1)
        ]
    else:
        times, of = 1, _archive_name(amount, megapixels)
        cases = [_archive(model, n * largest.tasks, amount, megapixels) for n in range(1, LARGEST + 1)]
    each = []
    for nodes, case in enumerate(cases, start=1):
        seconds = largest.start_seconds + times * model.draws(case)
        each.append(
            Choice(
                nodes=nodes,
                processes=case.world,
                seconds=Estimate.of(seconds, model.scatter),
                node_hours=Estimate.of(nodes * seconds / 3600, model.scatter),
            )
        )
    billed = f"Nodes are paid for from the start of the job, {largest.start_seconds:.3g} s before its work, to its end."
    return Choices(
        of=of, each=tuple(each), assumptions=(*_assumptions(model, "strong", cases, checked), billed)
    )


def nodes_for_best_cost(found: Choices) -> Choice:
    """Return the largest node count whose node-hours are within 10 % of the least: the fastest of the cheap ones."""
    least = min(choice.node_hours.value for choice in found.each)
    return [choice for choice in found.each if choice.node_hours.value <= (1 + SLACK) * least][-1]


def nodes_for_deadline(found: Choices, seconds: float) -> Choice | NoFit:
    """Return the smallest node count that is done within ``seconds``, or why there is none."""
    for choice in found.each:
        if choice.seconds.value <= seconds:
            return choice
    fastest = min(found.each, key=lambda choice: choice.seconds.value)
    return NoFit(
        f"{found.of} cannot be done in {seconds:,.6g} s on any number of nodes up to {found.each[-1].nodes:,}; the fastest is "
        f"{fastest.nodes:,}, with {fastest.seconds.value:,.0f} s"
    )


def _largest(model: Model) -> Result:
    """Return the largest point of the fit; of equals that with the smallest load."""
    return max(model.points, key=lambda point: (point.world, point.nodes, -point.scale))


def _doubled(base: int, last: int) -> list[int]:
    """Return ``base`` times 1, 2, 4, ... up to ``last``, and ``last``."""
    sizes = [base * 2**n for n in range(last.bit_length()) if base * 2**n < last]
    return [*sizes, last]


def _step(model: StepModel, world: int, blocks: int) -> Case:
    exchanging = [point for point in model.points if point.exchanged or point.half_exchanged]
    return Case(
        world=world,
        amount=blocks,
        largest_part=math.ceil(blocks / world),
        machines=math.ceil(world / _largest(model).tasks),
        exchanged=exchanging[-1].exchanged if exchanging else (),
        half_exchanged=exchanging[-1].half_exchanged if exchanging else (),
    )


def _archive(model: PassModel, world: int, scenes: int, megapixels: float) -> Case:
    return Case(
        world=world,
        amount=scenes * megapixels,
        largest_part=math.ceil(scenes / world) * megapixels,
        machines=math.ceil(world / _largest(model).tasks),
    )


def _archive_name(scenes: int, megapixels: float) -> str:
    return f"a pass over {scenes:,} scenes of {megapixels:.3g} megapixels"


def _projection(
    model: Model, mode: Mode, of: str, cases: Sequence[Case], checked: str, start: float = 0.0
) -> Projection:
    largest = _largest(model)
    times = [start + model.draws(case) for case in cases]
    first, first_rate = cases[0], cases[0].amount / times[0]
    points = []
    for case, seconds in zip(cases, times, strict=True):
        speedup = case.amount / seconds / first_rate
        points.append(
            Projected(
                world=case.world,
                nodes=math.ceil(case.world / largest.tasks),
                seconds=Estimate.of(seconds, model.scatter),
                speedup=Estimate.of(speedup, model.scatter),
                efficiency=Estimate.of(speedup * first.world / case.world, model.scatter),
            )
        )
    return Projection(
        work=largest.work,
        series=largest.series,
        mode=mode,
        of=of,
        measured_to=largest.world,
        points=tuple(points),
        assumptions=_assumptions(model, mode, cases, checked),
    )


def _checked(points: Sequence[Result]) -> str:
    """Say how far the model was off where it could be checked."""
    found = held_out(points)
    trials = [] if isinstance(found, NoFit) else found
    errors = [abs(check.error) for trial in trials for check in trial.checks if not check.crowded]
    if not errors:
        return "The model was not checked, because all points with a core or a GPU a process are needed to fit it."
    return f"Predicted from other points, those with a core or a GPU a process were missed by {max(errors):.1%} at most."


def _assumptions(model: Model, mode: Mode, cases: Sequence[Case], checked: str) -> tuple[str, ...]:
    """Say what must hold for the predictions of ``cases`` to come true."""
    largest = _largest(model)
    said = [
        f"Fitted to {len(model.points)} points of up to {largest.world} process"
        + "es" * (largest.world > 1)
        + f" and used for up to {cases[-1].world:,}.",
        checked,
        "Every process has a core or a GPU of its own, and computes as fast as those that were measured.",
        "Nodes do not fail, are not preempted, and are all the same.",
        "The interval holds the scatter of what was measured, not what the model leaves out."
        if model.scatter
        else "There is no interval, because not every point was repeated.",
    ]
    if isinstance(model, StepModel):
        return (*said, *_step_assumptions(model, mode, cases))
    return (*said, *_archive_assumptions(model, cases))


def _step_assumptions(model: StepModel, mode: Mode, cases: Sequence[Case]) -> list[str]:
    machines = max(case.machines for case in cases)
    link = model.network.link(machines)
    said = [
        f"An all-reduce is a ring with a latency of {link.latency.value * 1e6:.3g} microseconds and a bandwidth of "
        f"{link.bandwidth.value / 1e9:.3g} GB/s, as measured on up to {link.worlds[-1]} processes, and stays one.",
        "Communication is not hidden behind computing, and a step exchanges as many bytes on any number of processes.",
        "A gather, a scatter or a broadcast takes half as long as an all-reduce.",
        "Validations, checkpoints and what else comes between steps take no time.",
        "Blocks take as many iterations, and the data come as fast, as measured.",
    ]
    if machines > 1 and model.network.between is None:
        said.append(
            "All-reduces between machines were not measured; they are taken to be as fast as inside one."
        )
    if mode == "weak":
        said.append(
            "The batch grows with the processes; whether it still trains as well is not part of this."
        )
    else:
        said.append(
            "The batch stays, and is dealt evenly in whole blocks; more processes than blocks would idle."
        )
    return said


def _archive_assumptions(model: PassModel, cases: Sequence[Case]) -> list[str]:
    said = [
        f"Scenes have {model.bands} bands, take as long a pixel as those measured, and are dealt evenly, each to one process.",
        "Reading, computing and writing overlap, and reading and writing do not slow each other.",
    ]
    for what, storage in (("read", model.reading), ("write", model.writing)):
        if isinstance(storage, Storage):
            limit = storage.limit.value
            most = f"{limit / 1e9:.3g} GB/s" if math.isfinite(limit) else "no limit that was seen"
            said.append(
                f"All processes together {what} at up to {most}, by the saturation seen with up to {storage.worlds[-1]} of them."
            )
        else:
            said.append(f"The storage is never what a pass waits for ({what}): {storage.reason}.")
    slow = [case.world for case in cases if model.storage_draws(case)[0] >= model.draws(case)[0]]
    if slow:
        said.append(f"From {slow[0]:,} processes on, a pass takes what the storage takes.")
    return said
