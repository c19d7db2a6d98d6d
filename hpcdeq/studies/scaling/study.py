"""A scaling study on disk: the points that were asked for, those that are measured, and the jobs that measure them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.local import run_local
from hpcdeq.cluster.machine import Seat, forget_peak, machine, seat
from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.cluster.slurm import queued_among
from hpcdeq.cluster.submission import Submitted, submit
from hpcdeq.console import say, silence
from hpcdeq.errors import ConfigError, JobError, PartialFailureError, PreemptedError, SubmissionError
from hpcdeq.studies.page import write_whole
from hpcdeq.studies.scaling.gpus import all_gpus
from hpcdeq.studies.scaling.points import Point
from hpcdeq.studies.scaling.results import Host, Result, arranged

T = TypeVar("T")

_PATIENCE = 24 * 3600.0  # seconds that a process waits for the others: a pass ends with the slowest


class Study:
    """A folder with a folder for each point: ``point.json``, ``result.json`` when it is measured, and its jobs.

    Parameters
    ----------
    out
        The study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def add(self, point: Point, command: str) -> None:
        """Note that a point is wanted, and the command that asked for it."""
        _write(self.folder(point) / "point.json", {"point": asdict(point), "command": command})

    def folder(self, point: Point) -> Path:
        """Return a point's own folder."""
        return self.out / "points" / point.name

    def jobs(self, point: Point) -> Path:
        """Return where the logs and the submissions of a point lie."""
        return self.folder(point) / "jobs"

    def result(self, point: Point) -> Result | None:
        """Return what was measured at a point, None if it was not.

        Raises
        ------
        ConfigError
            If it cannot be read.
        """
        return _read(self.folder(point) / "result.json", Result.from_json)

    def record(self, point: Point, result: Result) -> None:
        """Keep what was measured."""
        _write(self.folder(point) / "result.json", result.as_json())

    def points(self) -> list[Point]:
        """Return all points that were ever asked for.

        Raises
        ------
        ConfigError
            If one cannot be read.
        """
        found = [_read(path, _point) for path in sorted((self.out / "points").glob("*/point.json"))]
        return [point for point in found if point]

    def results(self) -> list[Result]:
        """Return all that was measured, `arranged`."""
        return arranged(result for point in self.points() if (result := self.result(point)))


def scale_job(study: str, name: str, trace: bool) -> str:
    """Measure a point in the processes of this job, and keep the result, unless another job has done so.

    Parameters
    ----------
    study
        Folder of the study.
    name
        Of the point.
    trace
        Whether to write a trace of a training step.

    Returns
    -------
    str
        The point's folder.

    Raises
    ------
    ConfigError
        If there are other processes than the point has, or it cannot be measured.
    JobError
        If the time of the job did not suffice.
    """
    return measure(Path(study), [name], trace)[0]


def measure(study: Path, names: Sequence[str], trace: bool) -> list[str]:
    """Measure points in the processes that call this, one after the other.

    Parameters
    ----------
    study, trace
        As those of `scale_job`.
    names
        Of the points.

    Returns
    -------
    list
        Their folders.

    Raises
    ------
    ConfigError, JobError
        As `scale_job`; the points before are kept.
    """
    kept = Study(study)
    points = [_read(study / "points" / name / "point.json", _point) for name in names]
    place = place_of(os.environ)
    if place.rank > 0:
        silence()
    chosen = [point for point in points if point is not None]
    if not chosen:
        return []
    for point in chosen:
        if place.world_size != point.nodes * point.tasks:
            raise ConfigError(
                f"the point {point} has {point.nodes * point.tasks} processes, and {place.world_size} were started: start as many "
                "with mpirun or torchrun, or measure it with --cluster local or slurm"
            )
    device = choose_device(chosen[0].device, place.local_rank)
    # Workers of bulk denoising exchange nothing but flags; several may share a GPU, which NCCL refuses.
    where = device if chosen[0].work == "train" else torch.device("cpu")
    with process_group(place, where, _PATIENCE, alone=True) as team, stop_requests() as stop:
        started = seconds_since_start()
        for point in chosen:
            if team.first(lambda point=point: kept.result(point) is not None):  # type: ignore[misc]
                say(f"{point} is measured already")
                continue
            _measure(kept, point, team, place.local_rank, stop, trace, started)
    return [str(kept.folder(point)) for point in chosen]


def _measure(
    kept: Study, point: Point, team: Team, local_rank: int, stop: StopRequest, trace: bool, started: float
) -> None:
    """Measure one point, and keep the result."""
    begun, folder = time.perf_counter(), kept.folder(point)
    forget_peak()
    around, prefix = _scratch_of(kept, point)
    scratch = team.first(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=around)))
    try:
        if point.work == "train":
            from hpcdeq.studies.scaling.training import measure_training

            path = folder / "trace.json" if trace else None
            measured = measure_training(point, team, kept.out, scratch, stop, path)
        else:
            from hpcdeq.studies.scaling.bulk import measure_bulk

            measured = measure_bulk(point, team, local_rank, scratch, stop)
    except PreemptedError as error:
        if team.any(stop.signal == signal.SIGUSR2):  # it would be no better the next time
            raise JobError(
                f"{point} was not measured within the job's time: give the command again with a longer --time",
                1,
            ) from error
        raise
    finally:
        if team.leads:
            shutil.rmtree(scratch, ignore_errors=True)
    seats = team.gather(seat(measured["gpu"].get("gpu")))
    result = Result(
        work=point.work,
        series=point.series,
        nodes=point.nodes,
        tasks=point.tasks,
        load=point.load,
        settings=point.settings,
        hosts=hosts_of(seats),
        peak_bytes=max(team.gather(measured.pop("peak_bytes"))),
        gpu=all_gpus(team.gather(measured.pop("gpu"))),
        start_seconds=max(team.gather(started)),
        job_seconds=max(team.gather(started + time.perf_counter() - begun)),
        stamp=machine(),
        command=_read(folder / "point.json", lambda told: str(told["command"])) or "",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        **measured,
    )

    def keep() -> None:
        kept.record(point, result)
        for left in around.glob(f"{prefix}*"):  # of attempts that were killed
            shutil.rmtree(left, ignore_errors=True)

    team.first(keep)
    say(f"{point}: {result.median:.3g} s ({min(result.seconds):.3g} to {max(result.seconds):.3g})")
    if result.crowded:
        say(
            "processes shared cores or GPUs: this is no scaling. Where a core has two hardware threads, --slurm hint=nomultithread "
            "asks for cores"
        )


def check_storage(point: Point) -> None:
    """See that a point's storage is there.

    Raises
    ------
    ConfigError
        If it is not.
    """
    storage = point.what.get("storage")
    if storage and not Path(storage).is_dir():
        raise ConfigError(
            f"--storage {storage} is not a folder; make it on the file system that is to be measured"
        )


def submit_points(study: Study, points: Sequence[Point], request: JobRequest, trace: bool) -> list[Submitted]:
    """Submit a job for every point that is neither measured nor queued; they run one after the other: none disturbs another.

    Raises
    ------
    ConfigError
        If something in the request is wrong.
    SubmissionError
        If there is no SLURM here, or it refuses a job.
    """
    jobs: list[Submitted] = []
    busy = queued_among([study.jobs(point) for point in points])
    for point in points:
        if study.result(point) or busy[study.jobs(point)]:
            continue
        asked = request_of(point, request)
        # Of jobs with one name a user's next one begins when the last has ended.
        asked = replace(asked, slurm={"dependency": "singleton", **asked.slurm})
        try:
            jobs.append(
                submit(asked, study.jobs(point), scale_job, str(study.out.absolute()), point.name, trace)
            )
        except SubmissionError as error:
            before = ", ".join(job.id for job in jobs) or "none"
            raise SubmissionError(f"{error}; of {point}. Queued before it: {before}") from error
    return jobs


def run_points(study: Study, points: Sequence[Point], request: JobRequest, trace: bool) -> None:
    """Measure every point that is not measured with processes of this machine, one point after the other.

    Raises
    ------
    ConfigError
        If a point has more than one node.
    PartialFailureError
        If some failed; the others are measured.
    JobError
        If it was asked to stop.
    """
    failed = []
    for point in points:
        if study.result(point):
            continue
        asked = request_of(point, request)
        # As many threads for a process of every size.
        asked = replace(asked, cpus_per_task=asked.cpus_per_task or 1)
        try:
            run_local(asked, study.jobs(point), scale_job, str(study.out), point.name, trace)
        except JobError as error:
            if error.exit_code == PreemptedError.exit_code:
                raise
            say(f"{point}: {error}")
            failed.append(str(point))
    if failed:
        raise PartialFailureError("not measured: " + "; ".join(failed))


def request_of(point: Point, request: JobRequest) -> JobRequest:
    """What the job of a point asks for: its nodes and processes, and a GPU for each process if GPUs are asked for at all.

    Raises
    ------
    ConfigError
        If a node has fewer GPUs.
    """
    gpus = point.tasks if request.gpus_per_node else 0
    if gpus > request.gpus_per_node:
        raise ConfigError(
            f"--sizes {point.nodes}x{point.tasks}: each process has a GPU, and --gpus-per-node says that a node has "
            f"{request.gpus_per_node}"
        )
    return replace(request, nodes=point.nodes, tasks_per_node=point.tasks, gpus_per_node=gpus)


def node_hours(results: Sequence[Result], point: Point, request: JobRequest) -> tuple[float, bool]:
    """Node-hours of a point, and whether they are those of a measured sibling; else they are the most that its job may take."""
    siblings = [result for result in results if result.settings == point.settings]
    if siblings:
        each = point.load / (point.nodes * point.tasks)
        near = min(
            siblings, key=lambda r: (abs(r.load / r.world - each), abs(r.world - point.nodes * point.tasks))
        )
        return point.nodes * near.job_seconds / 3600, True
    return point.nodes * request.minutes / 60, False


def hosts_of(seats: Sequence[Seat]) -> tuple[Host, ...]:
    """Return the machines that processes share."""
    by_kernel: dict[str, list[Seat]] = defaultdict(list)
    for one in seats:
        by_kernel[one.kernel].append(one)
    return tuple(
        Host(
            name=", ".join(dict.fromkeys(one.node for one in together)),
            processes=len(together),
            threads=sum(one.threads for one in together),
            cores=len(frozenset[str]().union(*(one.cores for one in together))),
            gpus=len({one.gpu for one in together if one.gpu}),
        )
        for together in by_kernel.values()
    )


def seconds_since_start() -> float:
    """Return how long this process has lived."""
    # The 22nd field, in hundredths of a second since the system began; the name of the command, before it, may hold anything.
    begun = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")


def _scratch_of(study: Study, point: Point) -> tuple[Path, str]:
    """Folder in which a point's work is written, and how the names of its attempts begin: several may live at a time."""
    storage = point.what.get("storage")
    if not storage:
        return study.folder(point), "work."
    check_storage(point)
    whose = hashlib.sha256(str(study.out.resolve()).encode()).hexdigest()[:8]
    return Path(storage), f"hpcdeq-{point.name}-{whose}."


def _point(told: Any) -> Point:
    return Point(**told["point"])


def _read(path: Path, make: Callable[[Any], T]) -> T | None:
    """Make something of a file, or nothing if there is none."""
    try:
        return make(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged, or of another version of hpcdeq ({error!r}): remove its folder to measure that point again"
        ) from error


def _write(path: Path, values: Any) -> None:
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())
