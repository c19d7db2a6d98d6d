"""The SLURM lab of slurm/lab, for tests: a real cluster whose nodes crash and lose their network when told to."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm/lab/lab.sh"
CANNOT = 77  # the exit code of lab.sh where no lab can run

# A job in one of these states will not run again; after NODE_FAIL and PREEMPTED SLURM queues it once more.
FINAL = frozenset(["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"])


class LabError(Exception):
    """The lab, or a command in it, did not do what the test asked."""


class CannotRunError(LabError):
    """This machine cannot run a lab."""


@dataclass(frozen=True)
class Task:
    """A process that SLURM started for a job, as this machine sees it."""

    pid: int
    node: str
    step: str
    """``0``, ``1``, ... for the tasks of an srun, ``batch`` for the batch script."""
    rank: int
    job: str
    """Number of its job; of an array's with its place in that (``12_3``)."""


def until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = 60) -> None:
    """Wait for a condition.

    Raises
    ------
    LabError
        If the time is over; with `what` was waited for, as of then.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"waited {seconds} s in vain for {what()}")
        time.sleep(0.1)


class Lab:
    """A SLURM lab in a folder of its own.

    Parameters
    ----------
    folder
        Holds all of the lab; made by `up`, removed by `down`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[str] = []
        self._cut: set[str] = set()

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which commands reach the lab."""
        return {
            **os.environ,
            "HPCDEQ_LAB_DIR": str(self.folder),
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }

    def up(self, nodes: int = 3) -> None:
        """Start it; it ends with this process, even if that is killed.

        Raises
        ------
        CannotRunError
            If this machine cannot run a lab; says why.
        LabError
            If it should, but does not.
        """
        # The first time, the packages are installed.
        self._script("up", str(nodes), seconds=600)
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        watch = 'tail --pid="$1" --follow /dev/null; exec bash "$2" down --purge'
        subprocess.Popen(
            ["bash", "-c", watch, "lab-watch", str(os.getpid()), SCRIPT],
            env=self.environ,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def down(self) -> None:
        """End it and remove its folder."""
        self._script("down", "--purge")

    # Commands

    def run(self, *command: str | Path, seconds: float = 60, **environ: str) -> str:
        """Run a command that may use the lab, with more of an environment; return what it prints.

        Raises
        ------
        LabError
            If it fails, or has not ended after so many seconds.
        """
        done = self._call(command, seconds, environ)
        if done.returncode != 0:
            raise _failure(command, done)
        return done.stdout

    def begin(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Begin a command that may use the lab, and leave it alone."""
        nothing = subprocess.DEVNULL
        return subprocess.Popen(command, env=self.environ, stdin=nothing, stdout=nothing, stderr=nothing)

    def srun(self, *arguments: str | Path, seconds: float = 60, **environ: str) -> str:
        """Run tasks and wait for them; return what they print."""
        return self.run("srun", *arguments, seconds=seconds, **environ)

    def sbatch(self, *arguments: str | Path, **environ: str) -> str:
        """Submit a job and return its number; all its runs print to one file (see `output`), unless told otherwise.

        Parameters
        ----------
        *arguments
            Those of sbatch. A job array must be asked for here, by ``--array=``.
        **environ
            More of an environment for it.
        """
        array = any(str(argument).startswith("--array=") for argument in arguments)
        output = f"--output={self.folder}/job-{'%A_%a' if array else '%j'}.out"
        command = ("sbatch", "--parsable", output, "--open-mode=append", *arguments)
        return self.run(*command, **environ).strip()

    def output(self, job: str) -> str:
        """What the runs of a job, or of a task of an array (``12_3``), printed so far."""
        file = self.folder / f"job-{job}.out"
        return file.read_text() if file.exists() else ""

    def sacct(self, job: str, fields: str = "State") -> list[list[str]]:
        """Return what accounting knows of all runs of a job, oldest first: the given fields of each.

        It may lag behind the controller by seconds.
        """
        text = self.run("sacct", "-D", "-X", "-n", "-P", "-o", fields, "-j", job)
        return [line.split("|") for line in text.splitlines()]

    def accounts(self, job: str, fields: str = "State") -> list[list[str]]:
        """Return what `sacct` does, once accounting knows the state that the controller knows."""
        until(
            lambda: [row[0] for row in self.sacct(job)[-1:]] == list(self.states(job).values()),
            lambda: f"accounting to know of {self.states(job)}; it knows {self.sacct(job)}",
        )
        return self.sacct(job, fields)

    def squeue(self, *arguments: str) -> str:
        """Return what squeue prints, without its head line."""
        return self.run("squeue", "--noheader", *arguments)

    def states(self, job: str) -> dict[str, str]:
        """Return the state of a job, or of each task of an array; the controller knows finished ones for an hour."""
        lines = self.squeue("--states=all", "--array", "--jobs", job, "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, job: str, states: str | Iterable[str], seconds: float = 60) -> None:
        """Wait until a job, or all tasks of an array, are in one of some states.

        Raises
        ------
        LabError
            If the time is over, or another state is final.
        """
        wanted = {states} if isinstance(states, str) else set(states)

        def what() -> str:
            runs = f"{self.states(job)}, its runs so far {self.sacct(job)}"
            return f"job {job}, now {runs}, to be {sorted(wanted)}; it printed:\n{self.output(job)[-2000:]}"

        def reached() -> bool:
            now = set(self.states(job).values())
            if now & (FINAL - wanted):
                raise LabError(f"it cannot come: waited for {what()}")
            return bool(now) and now <= wanted

        until(reached, what, seconds)

    def wait_for_output(self, job: str, text: str, seconds: float = 60) -> None:
        """Wait until a job has printed something.

        Raises
        ------
        LabError
            If it does not in time.
        """
        until(
            lambda: text in self.output(job),
            lambda: (
                f"job {job} ({self.states(job)}) to print {text!r}; it printed:\n{self.output(job)[-2000:]}"
            ),
            seconds,
        )

    def restarts(self, job: str) -> int:
        """How often SLURM has started a job again."""
        return int(self._told(job, "Restarts"))

    def exit_code(self, job: str) -> tuple[int, int]:
        """Exit code of the batch script of a job, and the signal that ended it instead."""
        code, _, number = self._told(job, "ExitCode").partition(":")
        return int(code), int(number)

    def _told(self, job: str, what: str) -> str:
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return next(word for word in words if word.startswith(f"{what}=")).partition("=")[2]

    def tasks(self, job: str, step: str | None = None) -> list[Task]:
        """Find the task processes of a job, by rank; a test can kill them.

        Parameters
        ----------
        job
            Number of the job, of an array of jobs, or of one of an array (``12_3``).
        step
            Of one step only, or the batch script (``batch``); by default of all steps that srun started.
        """
        machines = {}  # labs count their jobs alike, but each machine has processes of its own
        for name in self.nodes:
            file = self.folder / f"run/{name}.pid"
            if file.exists() and (namespace := _namespace(int(file.read_text().split()[0]))):
                machines[namespace] = name
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            node = machines.get(_namespace(pid) or "")
            if node is None or not _started_by_slurm(pid):
                continue
            environ = _environ(pid)
            this = environ.get("SLURM_STEP_ID", "batch")
            array = environ.get("SLURM_ARRAY_JOB_ID")
            single = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else None
            if job in (array, single, environ.get("SLURM_JOB_ID")) and (
                this == step if step else this.isdecimal()
            ):
                rank = int(environ["SLURM_PROCID"])
                found.append(Task(pid, node, this, rank, single or environ["SLURM_JOB_ID"]))
        return sorted(found, key=lambda task: (task.job, task.step, task.rank))

    # Nodes

    def crash(self, node: str) -> None:
        """Cut the power of a node."""
        self._script("node", "crash", node)

    def start(self, node: str) -> None:
        """Boot a node that crashed."""
        self._script("node", "start", node)
        self._cut.discard(node)

    def cut(self, node: str) -> None:
        """Pull the network cable of a node: its jobs go on, unseen."""
        self._script("node", "cut", node)
        self._cut.add(node)

    def heal(self, node: str) -> None:
        """Plug the cable in again."""
        self._script("node", "heal", node)
        self._cut.discard(node)

    def let_go_on(self) -> None:
        """Do as an operator does after SLURM was to start a job on a node where a lost copy of it still ran.

        It then holds the job ("launch failed requeued held"), and gives the node no more jobs.
        """
        held = self.squeue("--array", "--states=PENDING", "--format=%i %r").splitlines()
        for line in held:
            job, _, reason = line.partition(" ")
            if "held" in reason:
                self.run("scontrol", "release", job)
        for node in self.run("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N").split():
            with suppress(LabError):  # it is down
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def kill_slurmd(self, node: str) -> None:
        """Kill SLURM's daemon on a node: its jobs go on, unseen."""
        self._script("node", "kill-slurmd", node)

    def restart_slurmd(self, node: str) -> None:
        """Start the daemon again."""
        self._script("node", "restart-slurmd", node)

    def exec(self, node: str, *command: str | Path, seconds: float = 60) -> str:
        """Run a command on a node, past SLURM; return what it prints."""
        return self.run("bash", SCRIPT, "exec", node, *command, seconds=seconds)

    def tidy(self, seconds: float = 60) -> None:
        """Cancel all jobs and repair all nodes.

        Raises
        ------
        LabError
            If some node is not idle in time.
        """
        for node in set(self._cut):
            self.heal(node)
        for node in self.nodes:
            self.start(node)
        if self.squeue():
            self.run("scancel", "--user=root")
        self.let_go_on()
        until(
            self._is_idle,
            lambda: f"an idle lab, of:\n{self.run('sinfo', '--long', '--Node')}{self.squeue()}",
            seconds,
        )

    def _is_idle(self) -> bool:
        idle = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--states=idle", "--format=%N")
        return set(idle.split()) == set(self.nodes) and not self.squeue()

    def _script(self, *arguments: str, seconds: float = 120) -> None:
        command: tuple[str | Path, ...] = ("bash", SCRIPT, *arguments)
        done = self._call(command, seconds)
        if done.returncode == CANNOT:
            raise CannotRunError(done.stderr.strip())
        if done.returncode != 0:
            raise _failure(command, done)

    def _call(
        self, command: Iterable[str | Path], seconds: float, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [str(word) for word in command],
                env={**self.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{_words(command)}: not done after {seconds} s") from error


def _failure(command: Iterable[str | Path], done: subprocess.CompletedProcess[str]) -> LabError:
    return LabError(f"{_words(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def _words(command: Iterable[str | Path]) -> str:
    return " ".join(str(word) for word in command)


def _namespace(pid: int) -> str | None:
    """The process namespace of a process, if there is one."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _started_by_slurm(pid: int) -> bool:
    """Whether the parent of a process is SLURM's daemon of a step."""
    try:
        # The name of the command, before it, may hold anything.
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        return Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd"
    except OSError:
        return False


def _environ(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
