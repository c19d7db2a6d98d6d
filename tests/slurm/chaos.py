"""Disturb training jobs on the SLURM lab, and see that nothing of it shows in what they leave.

A job is disturbed at an instant that is drawn over its whole life; in half of the runs the first write of a checkpoint after that
instant is waited for, as writing takes little of the time. Then it must finish by itself, or, where SLURM gives it up (a dead
rank), after the same command was given again.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcdeq.errors import TrainingError
from hpcdeq.training import checkpoints
from tests.slurm import scenes, strikes
from tests.slurm.lab import FINAL, Lab, LabError, until

STEPS, PRETRAIN_STEPS = 36, 12
SETTINGS = [
    "device=cpu",
    "model.block=24",
    "model.prior.layers=2",
    "model.prior.filters=6",
    "model.support.size=3",
    "model.solver.iterations=6",
    "model.adjoint.solver.iterations=6",
    "dictionary.atoms=40",
    "dictionary.sparsity=2",
    "dictionary.iterations=2",
    "data.batch=6",
    "data.val_blocks=6",
    f"training.pretrain_steps={PRETRAIN_STEPS}",
    f"training.steps={STEPS}",
    "training.support_sizes=[3,4]",
    "training.largest_residual=10",  # so small a model does not solve much
    "training.validate_every=12",
    "training.checkpoint_every=3",
    "training.log_every=1",
]
DEADLINE = 300.0  # seconds within which a disturbed run must end, on a busy machine too
_TIMES = ("step_seconds", "data_seconds")


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    weights: bytes
    metrics: list[dict[str, Any]]


@dataclass
class Run:
    """A run that is disturbed, and what became of it."""

    kind: str
    folder: Path
    nodes: int = 3
    limited: bool = False
    """Whether its attempts have a time limit of a minute, and are told of it as soon as SLURM looks."""
    jobs: list[str] = field(default_factory=list)
    """Numbers of its jobs: more than one if the command had to be given again."""
    killed: str | None = None
    """The job whose rank was killed last."""
    attempts: int = 0
    copies: bool = False
    """Whether a second copy began while the first one lived."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def job(self) -> str:
        return self.jobs[-1]


def make_archive(folder: Path, real: Path | None) -> Path:
    """Ingest crops of real scenes (folders of PNGs), or make scenes."""
    path = folder / "clean.zarr"
    if real is None:
        scenes.add_made(path, [(128, 128)] * 3)
    else:
        scenes.add_real(path, scenes.folders(real)[:4], 128)
    return path


class Stage:
    """A lab, and the runs that are disturbed on it one after the other.

    Parameters
    ----------
    lab
        Is up, and used by nobody else.
    folder
        Where runs are written.
    archive
        What they learn from.
    """

    def __init__(self, lab: Lab, folder: Path, archive: Path) -> None:
        self.lab, self.folder, self.archive = lab, folder, archive
        self._references: dict[int, Reference] = {}
        # Seconds from the start of a job to its end, by its number of nodes.
        self._lives: dict[int, float] = {}

    def reference(self, nodes: int = 3) -> Reference:
        """The undisturbed run on that many nodes; trained when it is first asked for."""
        if nodes not in self._references:
            run = Run("undisturbed", self.folder / f"undisturbed-{nodes}", nodes)
            self._submit(run)
            begin = self._wait_for_start(run)
            self.lab.wait(run.job, "COMPLETED", DEADLINE)
            self._lives[nodes] = time.monotonic() - begin
            weights = (run.folder / "model/model.safetensors").read_bytes()
            self._references[nodes] = Reference(weights, _metrics(run.folder))
        return self._references[nodes]

    def disturb(self, kind: str, seed: str) -> Run:
        """Train, disturb it once (``many``: thrice), and look at what is left; ``problems`` is empty if all is well."""
        rng = random.Random(f"{seed}-{kind}")
        run = Run(kind, self.folder / f"{kind}-{seed}", 1 if kind == "twin" else 3, kind == "limit")
        reference = self.reference(run.nodes)
        kinds = rng.sample(["kill", "requeue", "preempt", "crash", "blip"], 3) if kind == "many" else [kind]
        try:
            if run.limited:
                self._await_look_at_limits(rng.uniform(0, self._lives[run.nodes]))
            begin = time.monotonic()
            self._submit(run)
            # At the end SLURM does not notice in time that a node is cut off.
            life = self._lives[run.nodes] * (0.8 if kind == "twin" else 1.0)
            for each in kinds:
                self._strike(run, each, rng, life)
            self._finish(run, begin + DEADLINE)
            run.seconds = time.monotonic() - begin
        except LabError as error:
            run.problems.append(str(error))
        run.attempts = sum(1 + self.lab.restarts(job) for job in run.jobs)
        # One in seven or so is to come too late: on a busy machine no measured life holds for long.
        if kind != "cut":
            self._lives[run.nodes] *= 0.85 if run.attempts == 1 else 1.025
        self.lab.tidy()
        run.problems += self._found(run, reference)
        return run

    # A run

    def _submit(self, run: Run) -> None:
        limits = ("--time=1", "--signal-seconds=59") if run.limited else ("--time=10",)
        settings = [f"data.train={self.archive}", f"run={run.folder}", *SETTINGS]
        options = (f"--nodes={run.nodes}", "--profile=lab", "--cpus-per-task=1", *limits)
        command = (sys.executable, "-m", "hpcdeq", "submit", "train", *options, *settings)
        run.jobs.append(self.lab.run(*command).strip())

    def _wait_for_start(self, run: Run) -> float:
        self.lab.wait(run.job, FINAL | {"RUNNING"}, DEADLINE)
        return time.monotonic()

    def _finish(self, run: Run, deadline: float) -> None:
        """Wait for its end."""
        while True:
            self.lab.wait(run.job, {"COMPLETED", "FAILED"}, deadline - time.monotonic())
            if self._state(run) == {"COMPLETED"}:
                return
            if len(run.jobs) > 3:
                raise LabError(f"jobs {', '.join(run.jobs)} failed")
            self._give_again(run)

    def _give_again(self, run: Run) -> None:
        """Submit a failed job again, as its user would do; no rank was killed: then it should not have failed."""
        if run.job != run.killed:
            run.problems.append(f"job {run.job} failed: {self._last_words(run)}")
        self._submit(run)

    def _last_words(self, run: Run) -> str:
        logs = sorted((run.folder / "jobs").glob(f"{run.job}_*_log.out"))
        return " | ".join(f"{log.name}: {(log.read_text().splitlines() or [''])[-1]}" for log in logs)

    def _state(self, run: Run) -> set[str]:
        return set(self.lab.states(run.job).values())

    def _is_over(self, run: Run) -> bool:
        return bool(self._state(run) & FINAL)

    # Disturbances

    def _strike(self, run: Run, kind: str, rng: random.Random, life: float) -> None:
        """Disturb a run at an instant of its life; too late is no error, as an end is disturbed too."""
        # Drawn before anything is seen, so that a seed means the same every time.
        instant, aim, one, more = rng.uniform(0, life), rng.random() < 0.5, rng.randrange(3), rng.random()
        if self._state(run) == {"FAILED"}:
            self._give_again(run)
        begin = self._wait_for_start(run)
        if kind == "limit":
            return  # SLURM does it
        self._sleep_into(run, begin + instant, aim)
        ways: dict[str, Callable[[Run, int, float, float], None]] = {
            "kill": self._kill,
            "requeue": self._requeue,
            "preempt": self._preempt,
            "crash": self._crash,
            "blip": self._blip,
            "cut": self._cut,
            "twin": self._twin,
        }
        ways[kind](run, one, more, life)

    def _sleep_into(self, run: Run, instant: float, aim: bool) -> None:
        time.sleep(max(0.0, instant - time.monotonic()))
        end = time.monotonic() + 3
        while aim and not list(run.folder.glob("checkpoints/.attempt-*/*")) and time.monotonic() < end:
            time.sleep(0.0005)

    def _kill(self, run: Run, one: int, more: float, life: float) -> None:
        """SIGKILL one of its processes."""
        while not (tasks := self.lab.tasks(run.job)) and not self._is_over(run):
            time.sleep(0.05)
        if tasks:
            run.killed = run.job
            strikes.send(tasks[one % len(tasks)].pid, signal.SIGKILL)
            self.lab.wait(run.job, FINAL, DEADLINE)

    def _requeue(self, run: Run, one: int, more: float, life: float) -> None:
        strikes.requeue(self.lab, run.job)

    def _preempt(self, run: Run, one: int, more: float, life: float) -> None:
        """An urgent job takes one of its nodes."""
        if node := self._node(run, one):
            strikes.preempt(self.lab, node, 3 * more)

    def _crash(self, run: Run, one: int, more: float, life: float) -> None:
        """One of its nodes loses its power."""
        if node := self._node(run, one):
            strikes.crash(self.lab, node, 15 * more)

    def _blip(self, run: Run, one: int, more: float, life: float) -> None:
        """One of its nodes loses its network for some seconds."""
        if node := self._node(run, one):
            strikes.blip(self.lab, node, 0.2 + 6 * more)

    def _cut(self, run: Run, one: int, more: float, life: float) -> None:
        """The same; in half of the runs until SLURM has started a second copy elsewhere, and for a part of its life."""
        if more < 0.5:
            self._blip(run, one, 2 * more, life)
            return
        if (node := self._node(run, one)) is None:
            return
        first = [task for task in self.lab.tasks(run.job) if task.node == node]
        with strikes.cut_off(self.lab, node):
            if strikes.starts_again(self.lab, run.job):
                run.copies = any(task in self.lab.tasks(run.job) for task in first)
                time.sleep((2 * more - 1) * life)

    def _twin(self, run: Run, one: int, more: float, life: float) -> None:
        """A process alone in its job is cut off, and stands still until a second copy is at work; then both are."""
        if (node := self._node(run, 0)) is None:
            return
        while not (first := self.lab.tasks(run.job)) and not self._is_over(run):
            time.sleep(0.05)
        if not first:
            return
        with strikes.cut_off(self.lab, node):
            with strikes.standing_still(first):
                if strikes.starts_again(self.lab, run.job):
                    run.copies = first[0] in self.lab.tasks(run.job)
                    time.sleep(more * life)
            until(
                lambda: first[0] not in self.lab.tasks(run.job),
                lambda: f"the end of the first copy {first[0]}",
                60,
            )

    def _node(self, run: Run, one: int) -> str | None:
        """One of the nodes of a job; None if it has none, or none any more."""
        nodes = self.lab.squeue("--jobs", run.job, "--format=%N").strip()
        if not nodes:
            return None
        names = self.lab.run("scontrol", "show", "hostnames", nodes).split()
        return names[one % len(names)]

    def _await_look_at_limits(self, ahead: float) -> None:
        """Wait until SLURM will look at time limits so many seconds after the start of a job that is submitted now.

        It looks every half minute.
        """
        warned = "trap 'exit 0' USR1; sleep 100 & wait"
        job = self.lab.sbatch("--time=1", "--signal=B:USR1@59", "--wrap", warned)
        self.lab.wait(job, "COMPLETED", 60)
        time.sleep(max(0.0, 30 - ahead - _SUBMIT_SECONDS))

    # What is left

    def _found(self, run: Run, reference: Reference) -> list[str]:
        """What is wrong with a finished run."""
        problems = []
        weights = run.folder / "model/model.safetensors"
        if not weights.is_file():
            problems.append("there is no model")
        elif weights.read_bytes() != reference.weights:
            problems.append("the weights are not those of the undisturbed run")
        if _metrics(run.folder) != reference.metrics:
            problems.append("metrics.jsonl is not that of the undisturbed run")
        folder = run.folder / "checkpoints"
        if not checkpoints.committed(folder):
            problems.append("there is no checkpoint")
        for checkpoint in checkpoints.committed(folder):
            try:
                checkpoints.load(checkpoint)
            except TrainingError as error:
                problems.append(str(error))
        known = {path.name for path in checkpoints.committed(folder)}
        left = [path.name for path in folder.glob("*") if path.name not in known]
        left += [path.name for path in run.folder.glob(".*")]
        if left:
            problems.append(f"left over: {', '.join(sorted(left))}")
        if any(self.lab.tasks(job) for job in run.jobs):
            problems.append("processes of it are left over")
        return problems

    def forget(self, run: Run) -> None:
        """Remove the folder of a run."""
        shutil.rmtree(run.folder)


_SUBMIT_SECONDS = 3.0  # from the command to the start of the job
STRIKES = ("kill", "requeue", "preempt", "limit", "crash", "cut", "twin", "many")
"""All kinds of disturbances."""


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of the record of a run, without what times were taken."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in _TIMES} for line in lines]
