"""What can befall the processes of a job on the SLURM lab."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.slurm.lab import FINAL, Lab, LabError, Task


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process; False if it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def requeue(lab: Lab, job: str) -> bool:
    """Start a job again; False if it cannot be: it is completing, or waits in the queue."""
    try:
        lab.run("scontrol", "requeue", job)
    except LabError:
        return False
    return True


def warn(lab: Lab, job: str) -> bool:
    """Send the signal that SLURM sends before a job's time is over; False if it runs no more."""
    try:
        lab.run("scancel", "--signal=USR1", job)
    except LabError:
        return False
    return True


def preempt(lab: Lab, node: str, seconds: float) -> bool:
    """An urgent job takes a node for some seconds; False if SLURM does not give it the node, as it does not answer for a while."""
    options = ("--partition=urgent", f"--nodelist={node}", "--nodes=1", "--ntasks=2")
    job = lab.sbatch(*options, "--wrap", f"sleep {seconds}")
    try:
        lab.wait(job, "COMPLETED", 45)
    except LabError:
        lab.run("scancel", job)
        return False
    return True


def crash(lab: Lab, node: str, seconds: float) -> None:
    """Cut the power of a node; it boots after some seconds."""
    lab.crash(node)
    time.sleep(seconds)
    lab.start(node)


def blip(lab: Lab, node: str, seconds: float) -> None:
    """Pull the network cable of a node for some seconds."""
    with cut_off(lab, node):
        time.sleep(seconds)


@contextmanager
def cut_off(lab: Lab, node: str) -> Iterator[None]:
    """Pull the network cable of a node, until the end of the block."""
    lab.cut(node)
    try:
        yield
    finally:
        lab.heal(node)


@contextmanager
def standing_still(tasks: Iterable[Task]) -> Iterator[None]:
    """Stop processes, until the end of the block."""
    for task in tasks:
        send(task.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for task in tasks:
            send(task.pid, signal.SIGCONT)


def starts_again(lab: Lab, job: str, restarts: int = 0) -> bool:
    """Wait until a job runs that was started again more often than so many times; False if it ended instead.

    Raises
    ------
    LabError
        If neither happens within two minutes.
    """
    end = time.monotonic() + 120
    while time.monotonic() < end:
        states = set(lab.states(job).values())
        if states & FINAL:
            return False
        if lab.restarts(job) > restarts and states == {"RUNNING"}:
            return True
        if "PENDING" in states:
            lab.let_go_on()
        time.sleep(0.3)
    raise LabError(f"job {job} was not started again within two minutes: {lab.states(job)}")
