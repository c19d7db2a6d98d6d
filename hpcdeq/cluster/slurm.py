"""What SLURM is asked, by its own commands: which jobs are there and how they stand; and how to end some."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from hpcdeq.errors import ConfigError, SubmissionError

_HELD = re.compile("launch.failed.requeued.held")  # with spaces or with underscores, by its version
_ANSWER_SECONDS = 30.0


def is_slurm_here() -> bool:
    """Whether jobs could be submitted, and seen, from this machine."""
    return shutil.which("sbatch") is not None


def check_slurm_is_here() -> None:
    """Raise SubmissionError unless jobs can be submitted from this machine."""
    if not is_slurm_here():
        raise SubmissionError(
            "sbatch is not on PATH: submit from a login node of the cluster; --dry-run and --cluster local need no SLURM"
        )


def queued(folder: Path) -> list[str]:
    """Numbers of the jobs, submitted with a folder, that wait, run, or are about to be started again.

    Raises
    ------
    SubmissionError
        If SLURM does not answer.
    """
    return queued_among([folder])[folder]


def queued_among(folders: Iterable[Path]) -> dict[Path, list[str]]:
    """What `queued` returns, by folder; SLURM is asked once."""
    before = {
        folder: {path.name.split("_")[0] for path in folder.glob("*_submission.sh")} for folder in folders
    }
    if not any(before.values()):  # perhaps there is no SLURM here
        return {folder: [] for folder in before}
    check_slurm_is_here()
    code, words = ask("squeue", "--noheader", "--me", "--format=%F")
    if code != 0:
        raise SubmissionError(f"squeue does not answer: {words}")
    return {folder: sorted(jobs & set(words.split())) for folder, jobs in before.items()}


def cancel(*folders: Path) -> list[str]:
    """End the jobs that were submitted with some folders, and return their numbers.

    Raises
    ------
    SubmissionError
        If SLURM does not answer, or refuses.
    """
    jobs = [job for some in queued_among(folders).values() for job in some]
    if jobs:
        code, words = ask("scancel", *jobs)
        if code != 0:
            raise SubmissionError(f"scancel {' '.join(jobs)}: {words}")
    return jobs


def end_held(folder: Path) -> list[str]:
    """End the jobs, submitted with a folder, that SLURM would hold for ever, and return their numbers.

    It does so with a job that was to start on a node where a copy of it, once lost from sight, still ran.
    """
    before = {path.name.split("_")[0] for path in folder.glob("*_submission.sh")}
    code, words = ask("squeue", "--noheader", "--me", "--array", "--states=PENDING", "--format=%F %i %r")
    lines = [line.split(maxsplit=2) for line in words.splitlines()] if code == 0 else []
    held = [job for array, job, reason in lines if array in before and _HELD.search(reason)]
    if held:
        ask("scancel", *held)
    return held


def check_not_queued(folder: Path, run: Path, *, can_follow: bool) -> None:
    """See that no job which was submitted with a folder is in the queue.

    Parameters
    ----------
    folder
        Where the logs and the submissions lie.
    run
        What its user calls it.
    can_follow
        Whether a job of it may be submitted to start after the one before.

    Raises
    ------
    ConfigError
        If there is one.
    SubmissionError
        If there is no SLURM here, or it does not answer.
    """
    if jobs := queued(folder):
        after = f", or start after it with --slurm dependency=afterany:{jobs[0]}" if can_follow else ""
        raise ConfigError(
            f"{run} is queued or running already as job {', '.join(jobs)}: wait for it, or end it with hpcdeq cancel {run}{after}"
        )


def largest_array() -> int:
    """Return how many jobs the site lets an array have; SLURM's default if it does not say."""
    _, words = ask("scontrol", "show", "config")
    told = re.search(r"MaxArraySize\s*=\s*([0-9]+)", words)
    return max(1, int(told[1]) - 1) if told else 1000


def seen_by_slurm(job: str) -> tuple[str | None, bool, int]:
    """Return the state of a job, None if SLURM does not say; whether it is being preempted; and how often it was started again."""
    fields = "State:20,PreemptTime:30,RestartCnt:10"
    code, words = ask("squeue", "--noheader", f"--jobs={job}", f"--Format={fields}")
    if code != 0:
        return None, False, 0
    state, preemption, restarts = words.split() if words else ("", "N/A", "0")
    return state, preemption != "N/A", int(restarts)


def ask(*command: str) -> tuple[int, str]:
    """Return exit code and words of a SLURM command; -1 if it could not run, or did not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()
