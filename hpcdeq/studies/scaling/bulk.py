"""Measure passes of bulk denoising: those of its workers themselves, which begin at the same time."""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from hpcdeq.archive import open_archive
from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team
from hpcdeq.cluster.machine import peak_bytes
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.errors import ConfigError, PreemptedError
from hpcdeq.inference import DenoiseSettings, plan_archive
from hpcdeq.inference.plan import Unit, share_of
from hpcdeq.inference.worker import Worker
from hpcdeq.studies.scaling.gpus import GpuMeter
from hpcdeq.studies.scaling.micro import transfers
from hpcdeq.studies.scaling.points import Point
from hpcdeq.studies.scaling.results import Spread, UnitTimes
from hpcdeq.timing import Clock, measuring

_MEGA = 1e6


def measure_bulk(
    point: Point, team: Team, local_rank: int, scratch: Path, stop: StopRequest
) -> dict[str, Any]:
    """Measure a point, in all of its processes.

    Parameters
    ----------
    point
        The point, whose ``what`` has archive, model, settings and scenes.
    team
        The processes: each is a worker. They exchange nothing while they work.
    local_rank
        Which of its node this process is.
    scratch
        Folder to denoise into; on the storage that is measured.
    stop
        Looked at between tiles.

    Returns
    -------
    dict
        Fields of `hpcdeq.studies.scaling.results.Result`.

    Raises
    ------
    ConfigError
        If a scene cannot be denoised.
    PreemptedError
        If it was asked to stop.
    """
    what, effort = point.what, point.effort
    settings = DenoiseSettings(**what["settings"])
    archive = open_archive(what["archive"])
    meter = GpuMeter(choose_device(settings.device, local_rank))
    seconds: list[float] = []
    shares: list[dict[str, float]] = []
    timed: list[UnitTimes] = []
    parts: list[float] = []
    for repeat in range(effort["warmup"] + effort["repeats"]):
        out = scratch / f"pass_{repeat}.zarr"
        failed = team.first(
            partial(plan_archive, archive, Path(what["model"]), out, settings, names=what["scenes"])
        )
        worker = Worker(out, local_rank)
        units = share_of(worker.job.scenes, team.rank, team.world_size)
        counts = repeat >= effort["warmup"]
        clock, begin, mine = _pass(worker, units, team, stop, meter.repeat() if counts else nullcontext())
        for name, reason in {**failed, **worker.report.failed}.items():
            raise ConfigError(f"a scaling study needs scenes that can be denoised: {name}: {reason}")
        slowest = max(team.gather(mine))
        if counts:
            seconds.append(slowest)
            mine_by_unit = _units(clock, units, begin, team.rank)
            shares.append(_shares(clock, mine_by_unit, mine, slowest))
            timed += [unit for told in team.gather(mine_by_unit) for unit in told]
            parts = team.gather(sum(_megapixels(unit) for unit in units))
        records = [record for unit in units if (record := worker.ledger.read(unit))]
        iterations = [tile.iterations for record in records for tile in record.tiles]
        team.any(False)  # all have read their records
        team.first(partial(_remove, out))
    gpu, peak = meter.told(1), peak_bytes()
    by_tile = [n for told in team.gather(iterations) for n in told]
    told = {name: statistics.mean(share[name] for share in shares) for name in shares[0]}
    everyone = team.gather(told)
    return {
        "bands": archive[what["scenes"][0]].shape[0],
        "seconds": tuple(seconds),
        "amount": sum(parts),
        "largest_part": max(parts),
        "shares": {name: statistics.mean(one[name] for one in everyone) for name in told},
        "transfers": tuple(transfers([archive[name] for name in what["scenes"]], scratch, team)),
        "iterations": {"forward": Spread.of(by_tile)},
        "units": tuple(timed),
        "unit_mib": settings.unit_mib,
        "tile": (worker.job.scenes[0].block, worker.job.scenes[0].overlap),
        "peak_bytes": peak,
        "gpu": gpu,
    }


def _pass(
    worker: Worker, units: list[Unit], team: Team, stop: StopRequest, metered: AbstractContextManager[None]
) -> tuple[Clock, float, float]:
    """Denoise units in a pass that all processes begin together: what was timed of this one, when it began, and its seconds."""
    team.any(False)  # all begin together
    begin = time.perf_counter()
    stopped = False
    with measuring() as clock, metered:
        try:
            worker.denoise(units, stop)
        except PreemptedError:
            stopped = True
        mine = time.perf_counter() - begin
    if team.any(stopped):
        raise PreemptedError("stopped before the point was measured; it is measured again")
    return clock, begin, mine


def _megapixels(unit: Unit) -> float:
    return unit.window.height * unit.window.width / _MEGA


def _shares(clock: Clock, units: list[UnitTimes], mine: float, slowest: float) -> dict[str, float]:
    """Where the time of the thread that computes went."""
    shares = {name: clock.total(name) for name in ("reading", "writing")}
    shares |= {"computing": sum(unit.compute_seconds for unit in units), "idle": slowest - mine}
    return shares | {"other": max(0.0, slowest - sum(shares.values()))}


def _compute_seconds(clock: Clock, begin: float) -> list[float]:
    """Seconds in which each unit was computed: between the ends of two, without what the computing waited for."""
    waits = [wait for name in ("reading", "writing") for wait in clock.ended.get(name, ())]
    found = []
    for end, _ in clock.ended.get("computed", ()):
        found.append(end - begin - sum(seconds for when, seconds in waits if begin < when <= end))
        begin = end
    return found


def _units(clock: Clock, units: list[Unit], begin: float, worker: int) -> list[UnitTimes]:
    # Several threads read and write, and what they end in is another order than what they begin in.
    read, write = (
        [seconds for _, seconds in sorted(clock.ended.get(name, ()), key=lambda told: told[0] - told[1])]
        for name in ("read", "write")
    )
    columns = (read, _compute_seconds(clock, begin), write)
    return [
        UnitTimes(
            worker=worker,
            pixels=unit.reach.height * unit.reach.width,
            read_seconds=read,
            compute_seconds=compute,
            write_seconds=write,
        )
        for unit, read, compute, write in zip(units, *columns, strict=True)
    ]


def _remove(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):  # the ledger too
        shutil.rmtree(path)
