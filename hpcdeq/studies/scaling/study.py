"""A scaling study on disk: the points that were asked for, those that are measured, and the jobs that measure them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpcdeq.cluster.device import choose_device
from hpcdeq.cluster.group import Team, process_group
from hpcdeq.cluster.machine import Seat, machine, seat
from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.signals import stop_requests
from hpcdeq.cluster.submission import Submitted, queued, run_local, submit
from hpcdeq.console import say, silence
from hpcdeq.errors import ConfigError, JobError, PartialFailureError, PreemptedError
from hpcdeq.studies.page import write_whole
from hpcdeq.studies.scaling.points import Point
from hpcdeq.studies.scaling.results import Host, Result


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
        """Return what was measured at a point, None if it was not."""
        path = self.folder(point) / "result.json"
        return Result.from_json(json.loads(path.read_text())) if path.is_file() else None

    def record(self, point: Point, result: Result) -> None:
        """Keep what was measured."""
        _write(self.folder(point) / "result.json", result.as_json())

    def command(self, point: Point) -> str:
        """Return the command that asked for a point."""
        return str(json.loads((self.folder(point) / "point.json").read_text())["command"])

    def points(self) -> list[Point]:
        """Return all points that were ever asked for."""
        paths = sorted((self.out / "points").glob("*/point.json"))
        return [Point(**json.loads(path.read_text())["point"]) for path in paths]

    def results(self) -> list[Result]:
        """Return all that was measured."""
        return [result for point in self.points() if (result := self.result(point))]


def scale_job(study: str, name: str, device: str, trace: bool, begun: float = 0.0) -> str:
    """Measure a point in the processes of this job, and keep the result.

    Parameters
    ----------
    study
        Folder of the study.
    name
        Of the point.
    device
        ``auto``, ``cpu`` or ``cuda``.
    trace
        Whether to write a trace of a training step.
    begun
        How long this process had lived, in seconds, when this became its work.

    Returns
    -------
    str
        The point's folder.

    Raises
    ------
    ConfigError
        If there are other processes than the point has.
    """
    kept = Study(Path(study))
    folder = kept.out / "points" / name
    point = Point(**json.loads((folder / "point.json").read_text())["point"])
    place = place_of(os.environ)
    if place.rank > 0:
        silence()
    if place.world_size != point.nodes * point.tasks:
        raise ConfigError(
            f"the point {point} has {point.nodes * point.tasks} processes, and {place.world_size} were started: start as many with "
            "mpirun or torchrun, or measure it with --cluster local or slurm"
        )
    where = choose_device(device, place.local_rank)
    scratch = Path(point.what.get("storage") or folder) / f"{name}.work"
    with process_group(place, where, alone=True) as team, stop_requests() as stop:
        team.first(lambda: shutil.rmtree(scratch, ignore_errors=True))
        team.first(lambda: scratch.mkdir(parents=True))
        started = seconds_since_start() - begun
        try:
            if point.work == "train":
                from hpcdeq.studies.scaling.training import measure_training

                path = folder / "trace.json" if trace else None
                measured = measure_training(point, team, kept.out, scratch, stop, path)
            else:
                from hpcdeq.studies.scaling.bulk import measure_bulk

                measured = measure_bulk(point, team, place.local_rank, scratch, stop)
        except PreemptedError as error:
            if stop.signal == signal.SIGUSR2:  # it would be no better the next time
                raise JobError(
                    f"{point} was not measured within the job's time: give the command again with a longer --time",
                    1,
                ) from error
            raise
        finally:
            if team.leads:
                shutil.rmtree(scratch, ignore_errors=True)
        seats = team.gather(seat(where.index or 0 if where.type == "cuda" else None))
        peak = max(team.gather(peak_bytes()))
        result = Result(
            work=point.work,
            series=point.series,
            nodes=point.nodes,
            tasks=point.tasks,
            base=point.base,
            base_load=point.base_load,
            scale=point.scale,
            hosts=hosts_of(seats),
            peak_bytes=peak,
            gpu=_all_gpus(team, measured.pop("gpu")),
            start_seconds=max(team.gather(started)),
            job_seconds=max(team.gather(seconds_since_start() - begun)),
            stamp=machine(),
            command=kept.command(point),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            **measured,
        )
        team.first(lambda: kept.record(point, result))
    say(f"{point}: {result.median:.3g} s ({min(result.seconds):.3g} to {max(result.seconds):.3g})")
    return str(folder)


def submit_points(
    study: Study, points: Sequence[Point], request: JobRequest, device: str, trace: bool
) -> list[Submitted]:
    """Submit a job for every point that is neither measured nor queued; they run one after the other: none disturbs another.

    Raises
    ------
    ConfigError
        If something in the request is wrong.
    SubmissionError
        If there is no SLURM here, or it refuses a job.
    """
    jobs = []
    for point in points:
        if study.result(point) or queued(study.jobs(point)):
            continue
        asked = request_of(point, request)
        # Of jobs with one name a user's next one begins when the last has ended.
        asked = replace(asked, slurm={"dependency": "singleton", **asked.slurm})
        jobs.append(
            submit(asked, study.jobs(point), scale_job, str(study.out.absolute()), point.name, device, trace)
        )
    return jobs


def run_points(study: Study, points: Sequence[Point], request: JobRequest, device: str, trace: bool) -> None:
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
        arguments = (str(study.out), point.name, device, trace)
        try:
            run_local(request_of(point, request), study.jobs(point), scale_job, *arguments)
        except JobError as error:
            if error.exit_code == PreemptedError.exit_code:
                raise
            say(f"{point}: {error}")
            failed.append(str(point))
    if failed:
        raise PartialFailureError("not measured: " + "; ".join(failed))


def request_of(point: Point, request: JobRequest) -> JobRequest:
    """What the job of a point asks for: its nodes and processes, and a GPU for each process if GPUs are asked for at all."""
    gpus = point.tasks if request.gpus_per_node else 0
    return replace(request, nodes=point.nodes, tasks_per_node=point.tasks, gpus_per_node=gpus)


def node_hours(study: Study, point: Point, request: JobRequest) -> tuple[float, bool]:
    """Node-hours of a point, and whether they were measured at a sibling; else they are the most that its job may take."""
    siblings = [
        result
        for other in study.points()
        if (other.work, other.series) == (point.work, point.series) and (result := study.result(other))
    ]
    if siblings:
        near = min(siblings, key=lambda r: (abs(r.scale - point.scale), abs(r.nodes - point.nodes)))
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


def peak_bytes() -> int:
    """Return the largest memory that this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _all_gpus(team: Team, told: dict[str, float]) -> dict[str, float] | None:
    everyone = [one for one in team.gather(told) if one]
    if not everyone:
        return None
    found: dict[str, Any] = {"peak_bytes": max(one["peak_bytes"] for one in everyone)}
    if all("utilisation" in one for one in everyone):
        found["utilisation"] = sum(one["utilisation"] for one in everyone) / len(everyone)
    if all("joules" in one for one in everyone):
        found["joules"] = sum(one["joules"] for one in everyone)
    return found


def _write(path: Path, values: Any) -> None:
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())
