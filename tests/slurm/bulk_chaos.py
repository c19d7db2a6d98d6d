"""Disturb bulk denoising on the SLURM lab, and see that nothing of it shows in what it leaves.

A run is `hpcdeq submit denoise` of one archive, and disturbances at instants that are drawn; half of them wait for the first write
after that. When all jobs are over and one was killed, the command is given again, as its user would
do. In the end the archive must have the bytes that a single undisturbed process wrote, and the ledger every unit once.
"""

from __future__ import annotations

import filecmp
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings, save_model
from hpcdeq.solvers import Picard
from tests.slurm import scenes, strikes
from tests.slurm.lab import FINAL, ROOT, Lab, LabError, Task, until

KINDS = ("kill", "requeue", "limit", "preempt", "crash", "blip", "cut", "stop", "submitter")
"""All kinds of disturbances."""
_LONG = ("cut", "stop")
"""What takes longest: until SLURM misses a node. Meanwhile the others strike."""
DEADLINE = 300.0  # seconds within which a run must go on, on a busy machine too


@dataclass(frozen=True)
class Work:
    """What is denoised, and what comes of it undisturbed."""

    archive: Path
    model: Path
    out: Path
    """Written by a single process."""
    units: int
    seconds: float
    """How long that took."""


@dataclass
class Strike:
    """A disturbance."""

    kind: str
    hit: bool = False
    """Whether it met a living process of the run."""
    copies: bool = False
    """Whether two copies of one job lived because of it."""


@dataclass
class Run:
    """A run that is disturbed, and what became of it."""

    folder: Path
    nodes: int
    strikes: list[Strike] = field(default_factory=list)
    commands: int = 0
    """How often it was submitted, not counting submissions that were killed."""
    last: str | None = None
    """The job array of the last command; None if the command was refused, as there were jobs in the queue."""
    arrays: set[str] = field(default_factory=set)
    """All arrays that a command has vouched for."""
    killed: set[str] = field(default_factory=set)
    """Jobs that had a process killed."""
    failed: set[str] = field(default_factory=set)
    """Jobs that have failed."""
    asked: int = 0
    """How often it was asked how far it is, and told."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out.zarr"

    @property
    def ledger(self) -> Path:
        return self.folder / "out.zarr.ledger"


def make_work(folder: Path, real: Sequence[Path], edge: int, made: Sequence[tuple[int, int]]) -> Work:
    """Make noisy scenes, real (their middles) and made ones, and a small model; denoise them undisturbed.

    Parameters
    ----------
    folder
        Where all of it lies.
    real, edge
        Folders of real scenes, and how many rows and columns are taken of them.
    made
        Rows and columns of each made scene.
    """
    clean, noisy, model, out = (folder / name for name in ("clean.zarr", "noisy.zarr", "model", "out.zarr"))
    folder.mkdir(parents=True, exist_ok=True)
    if real:
        scenes.add_real(clean, real, edge)
    scenes.add_made(clean, made)
    _run("degrade", clean, "--out", noisy, "--sigma", "50")
    shutil.rmtree(clean)
    torch.manual_seed(0)
    settings = ModelSettings(
        block=60,
        prior=CnnSettings(layers=2, filters=6),
        support=SupportSettings(size=3),
        solver=Picard(iterations=3, tolerance=0),
    )
    atoms = torch.rand(31, 40)
    save_model(SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)), model, {})
    begin = time.monotonic()
    _run("denoise", noisy, "--model", model, "--out", out, "--device", "cpu")
    seconds = time.monotonic() - begin
    return Work(noisy, model, out, json.loads(_run("status", out, "--json"))["units"], seconds)


class Stage:
    """A lab, and the runs that are disturbed on it one after the other.

    Parameters
    ----------
    lab
        Is up, and used by nobody else.
    folder
        Where runs are written.
    work
        What they do.
    pause
        Longest time between two disturbances, in seconds.
    """

    def __init__(self, lab: Lab, folder: Path, work: Work, pause: float = 8.0) -> None:
        self.lab, self.folder, self.work, self.pause = lab, folder, work, pause
        self._submit_seconds = 3.0
        self._lock = threading.RLock()
        self._struck: set[str] = set()  # nodes that a disturbance is at

    def disturb(self, kinds: Sequence[str], seed: str) -> Run:
        """Denoise, disturb it in these ways, and look at what is left; ``problems`` is empty if all is well."""
        rng = random.Random(seed)
        run = Run(self.folder / f"run-{seed}", rng.choice((3, 4)))
        rest = [kind for kind in kinds if kind != "submitter"]
        long, short = ([kind for kind in rest if (kind in _LONG) == slow] for slow in (True, False))
        begin = time.monotonic()
        try:
            with self._asking(run, rng.random()):
                for _ in range(kinds.count("submitter")):
                    self._strike_submission(run, rng)
                self._submit(run)
                with ThreadPoolExecutor(2) as pool:
                    for ended in [
                        pool.submit(self._strike, run, these, rng.random()) for these in (long, short)
                    ]:
                        ended.result()
                self._finish(run)
        except LabError as error:
            run.problems.append(str(error))
        run.seconds = time.monotonic() - begin
        try:
            self.lab.tidy()
            until(lambda: not self._workers(run), lambda: f"the end of {self._workers(run)}")
        except LabError as error:
            run.problems.append(str(error))
        run.problems += self._found(run)
        if run.problems:
            run.folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.lab.folder / "log/slurmctld.log", run.folder)  # of all runs so far
        return run

    def forget(self, run: Run) -> None:
        """Remove the folder of a run."""
        shutil.rmtree(run.folder)

    # A run

    def _command(self, run: Run) -> list[str]:
        what = [str(self.work.archive), f"--model={self.work.model}", f"--out={run.out}", "--device=cpu"]
        asked = [
            f"--nodes={run.nodes}",
            "--profile=lab",
            "--cpus-per-task=1",
            f"--job-name={run.folder.name}",
        ]
        return [sys.executable, "-m", "hpcdeq", "submit", "denoise", *what, *asked]

    def _submit(self, run: Run) -> None:
        begin = time.monotonic()
        run.commands += 1
        try:
            run.last = self.lab.run(*self._command(run), seconds=DEADLINE).strip()
        except LabError as error:
            # A submission that was killed may have left jobs.
            if not (set(self._arrays(run)) - run.arrays and "is queued or running already" in str(error)):
                raise
            run.last = None
        else:
            run.arrays.add(run.last)
            self._submit_seconds = time.monotonic() - begin

    def _finish(self, run: Run) -> None:
        """Wait until it is done."""
        end = time.monotonic() + DEADLINE
        while not self._goes_on(run):
            if time.monotonic() > end:
                raise LabError(f"waited {DEADLINE} s in vain for the end of {self._states(run)}")
            time.sleep(0.3)

    def _goes_on(self, run: Run) -> bool:
        """See that it goes on: the command is given again when all jobs are over and one has failed. Whether all is done."""
        with self._lock:
            states = set(self._states(run).values())
            if "PENDING" in states:
                self.lab.let_go_on()
            if not states <= FINAL:
                return False
            if self._is_done(run):
                return True
            if run.commands == 8:
                raise LabError(f"given {run.commands} times, it is not done: {self._states(run)}")
            self._submit(run)
            return False

    def _is_done(self, run: Run) -> bool:
        """Whether the jobs of the last command, which are over, did all that there was to do; no other may have failed."""
        states = self._states(run)
        failed = {job for job, state in states.items() if state != "COMPLETED"}
        for job in sorted(failed - run.failed - run.killed):
            # Others have no submission to read, or SLURM ended them: the signal of a requeue may come to a node only when it has
            # booted, and hit the next attempt; the grace of a preemption may end as if it were the time limit.
            by_itself = states[job] == "FAILED" and self.lab.exit_code(job)[0] != 0
            if by_itself and _array(job) in run.arrays:
                run.problems.append(f"job {job} is {states[job]}: {self._last_words(run, job)}")
        run.failed |= failed
        return run.last is not None and not any(_array(job) == run.last for job in failed)

    def _states(self, run: Run) -> dict[str, str]:
        asked = ("--states=all", "--array", f"--name={run.folder.name}", "--format=%i %T")
        return dict(line.split() for line in self.lab.squeue(*asked).splitlines())

    def _arrays(self, run: Run) -> list[str]:
        return sorted({_array(job) for job in self._states(run)})

    def _workers(self, run: Run) -> list[Task]:
        return [task for array in self._arrays(run) for task in self.lab.tasks(array)]

    def _last_words(self, run: Run, job: str) -> str:
        logs = sorted((run.ledger / "jobs").glob(f"{job}_*_log.out"))
        return " | ".join(f"{log.name}: {(log.read_text().splitlines() or [''])[-1]}" for log in logs)

    # Disturbances

    def _strike_submission(self, run: Run, rng: random.Random) -> None:
        """SIGKILL the process that submits; what it has handed to SLURM by then is in the queue, or not."""
        strike = Strike("submitter")
        run.strikes.append(strike)
        jobs = run.ledger / "jobs"
        # It plans, the plan is written, sbatch is called.
        signs = (run.out.exists, run.ledger.exists, lambda: any(jobs.glob(".submission_file_*")))
        part, aim, sign = rng.random(), rng.random() < 0.5, rng.choice(signs)
        process = self.lab.begin(*self._command(run))
        end = time.monotonic() + (20 if aim else part * self._submit_seconds)
        while time.monotonic() < end and process.poll() is None:
            if aim and sign():
                time.sleep(0.1 * part)
                break
            time.sleep(0.0005)
        strike.hit = process.poll() is None
        process.kill()
        process.wait()
        time.sleep(part)  # sbatch goes on without it

    def _strike(self, run: Run, kinds: Sequence[str], seed: float) -> None:
        """Disturb a run in some ways, one after the other."""
        rng = random.Random(seed)
        for kind in kinds:
            # Drawn before anything is seen, so that a seed means the same every time.
            pause, aim, one, more = rng.uniform(0, self.pause), rng.random() < 0.5, rng.random(), rng.random()
            strike = Strike(kind)
            run.strikes.append(strike)
            time.sleep(pause)
            with self._worker(run, one, aim) as worker:
                if worker is None:
                    return  # too late: an end is disturbed too
                self._hit(run, strike, worker, more)

    def _hit(self, run: Run, strike: Strike, worker: Task, more: float) -> None:
        strike.hit = True
        match strike.kind:
            case "kill":
                run.killed.add(worker.job)
                strike.hit = strikes.send(worker.pid, signal.SIGKILL)
            case "requeue":
                strike.hit = strikes.requeue(self.lab, worker.job)
            case "limit":
                strike.hit = strikes.warn(self.lab, worker.job)
            case "preempt":
                strike.hit = strikes.preempt(self.lab, worker.node, 3 * more)
            case "crash":
                strikes.crash(self.lab, worker.node, 15 * more)
            case "blip":
                strikes.blip(self.lab, worker.node, 0.2 + 6 * more)
            case "cut":
                strike.copies = self._two_copies(worker, 0, 10 * more)
            case "stop":
                strike.copies = self._two_copies(worker, 15 * more, 5 * more)

    @contextmanager
    def _worker(self, run: Run, one: float, aim: bool) -> Iterator[Task | None]:
        """One of its processes, as soon as there is one, or they write; None if all is done. Nothing else strikes its node then."""
        end = time.monotonic() + DEADLINE
        while (worker := self._free_worker(run, one)) is None and not self._goes_on(run):
            if time.monotonic() > end:
                raise LabError(f"no process for {DEADLINE} s of {self._states(run)}")
            time.sleep(0.3)
        end = time.monotonic() + 10
        while worker and aim and not _writes(run) and time.monotonic() < end:
            time.sleep(0.002)
        try:
            yield worker
        finally:
            if worker:
                self._struck.discard(worker.node)

    def _free_worker(self, run: Run, one: float) -> Task | None:
        with self._lock:
            workers = [worker for worker in self._workers(run) if worker.node not in self._struck]
            if not workers:
                return None
            worker = workers[int(one * len(workers))]
            self._struck.add(worker.node)
            return worker

    def _two_copies(self, worker: Task, still: float, then: float) -> bool:
        """Cut a node off until SLURM has started a job of its elsewhere too, and for some seconds then.

        With ``still`` the first process stands still from the beginning until so many seconds after the second has begun.

        Returns
        -------
        bool
            Whether both were alive and could work.
        """
        restarts = self.lab.restarts(worker.job)
        with strikes.cut_off(self.lab, worker.node):
            with strikes.standing_still([worker] if still else []):
                if not (strikes.starts_again(self.lab, worker.job, restarts) and self._second(worker)):
                    return False
                time.sleep(still)
            copies = self.lab.tasks(worker.job)
            time.sleep(then)
        return worker in copies and len(copies) > 1

    def _second(self, worker: Task) -> bool:
        """Wait for the process of a job that was started again; False if it ended instead."""
        while not any(task != worker for task in self.lab.tasks(worker.job)):
            if set(self.lab.states(worker.job).values()) & FINAL:
                return False
            time.sleep(0.1)
        return True

    # How far it is

    @contextmanager
    def _asking(self, run: Run, seed: float) -> Iterator[None]:
        """Call ``hpcdeq status`` at random instants while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._ask, args=(run, random.Random(seed), over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _ask(self, run: Run, rng: random.Random, over: threading.Event) -> None:
        before = 0
        for options in itertools.cycle([["--json"], []]):
            if over.wait(rng.uniform(0, 4 * self.pause)):
                return
            done = _call("status", run.out, *options)
            if done.returncode != 0:
                if (
                    run.asked or "Traceback" in done.stderr
                ):  # before the first worker has begun there is nothing
                    run.problems.append(f"status: exit code {done.returncode}: {done.stderr}")
                continue
            run.asked += 1
            if options:
                try:
                    told = json.loads(done.stdout)
                    wrong = self._wrong_numbers(told, before)
                    before = told["finished"]
                except (ValueError, KeyError, TypeError) as error:
                    wrong = repr(error)
                if wrong:
                    run.problems.append(f"status: {wrong}: {done.stdout}")

    def _wrong_numbers(self, told: dict[str, Any], before: int) -> str | None:
        """What cannot be in what status tells."""
        if told["units"] != self.work.units:
            return f"{told['units']} units, not {self.work.units}"
        if not before <= told["finished"] <= told["units"]:
            return f"{told['finished']} units finished, after {before}"
        if told["finished"] != sum(scene["finished"] for scene in told["scenes"]):
            return "the scenes' units are others"
        if any(scene["state"] not in ("pending", "running", "done") for scene in told["scenes"]):
            return "a scene is in a wrong state"
        if any(isinstance(value, (int, float)) and value < 0 for value in told.values()):
            return "a negative number"
        return None

    # What is left

    def _found(self, run: Run) -> list[str]:
        """What is wrong with a finished run."""
        problems = []
        if not run.out.exists():
            return ["there is no archive"]
        for what, mine, expected in (
            ("archive", _files(run.out), _files(self.work.out)),
            ("ledger", _records(run.ledger), _records(_ledger_of(self.work.out))),
        ):
            if missing := expected - mine:
                problems.append(f"the {what} lacks {_named(missing)}")
            if extra := mine - expected:
                problems.append(f"left over in the {what}: {_named(extra)}")
        differing = {
            name
            for name in _files(run.out) & _files(self.work.out)
            if not filecmp.cmp(run.out / name, self.work.out / name, shallow=False)
        }
        if differing:
            problems.append(f"other bytes than of the undisturbed run: {_named(differing)}")
        known = {run.out.name, run.ledger.name}
        for path in sorted(run.folder.iterdir()):
            if path.name not in known:
                problems.append(f"left over: {path.name}: {_named(_files(path))}")
        verified = _call("verify", run.out)
        if verified.returncode != 0:
            problems.append(f"verify: exit code {verified.returncode}: {verified.stdout}{verified.stderr}")
        told = json.loads(_run("status", run.out, "--json"))
        undone = [s for s in told["scenes"] if not (s["state"] == "done" and s["finished"] == s["units"])]
        if undone or not told["finished"] == told["units"] == self.work.units:
            problems.append(
                f"status says {told['finished']} of {told['units']} units; not done: {undone[:3]}"
            )
        if left := self._workers(run):
            problems.append(f"processes of it are left over: {left}")
        return problems


def _writes(run: Run) -> bool:
    """Whether some file or folder of a run is there that its writer will rename or remove at once."""
    staging = run.folder / "out.zarr.staging"
    for folder, subfolders, files in itertools.chain(os.walk(staging), os.walk(run.ledger / "units")):
        if any(name.endswith(".partial") or name.startswith(".") for name in files):
            return True
        if Path(folder) == staging and any(name.count(".") > 1 for name in subfolders):  # HOST.PID.NUMBER
            return True
    return False


def _named(paths: Iterable[Path]) -> str:
    """Some of them, and how many there are."""
    names = sorted(map(str, paths))
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} ({len(names)} files)"


def _array(job: str) -> str:
    """The number of the array that a job belongs to."""
    return job.partition("_")[0]


def _files(folder: Path) -> set[Path]:
    """All files below a folder, by their paths inside it."""
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}


def _records(ledger: Path) -> set[Path]:
    """The files of a ledger, without those of the jobs."""
    return {path for path in _files(ledger) if path.parts[0] != "jobs"}


def _ledger_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.ledger")


def _call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcdeq", *(str(argument) for argument in arguments)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def _run(*arguments: str | Path) -> str:
    """What a verb prints.

    Raises
    ------
    LabError
        If it fails.
    """
    done = _call(*arguments)
    if done.returncode != 0:
        raise LabError(f"hpcdeq {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout
