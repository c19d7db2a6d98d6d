"""Bulk denoising as the work of jobs: plain values in, so that a job's description holds no code of ours."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.slurm import cancel, check_not_queued, end_held, queued
from hpcdeq.cluster.submission import Submitted, check_each, submit_each
from hpcdeq.console import say
from hpcdeq.errors import JobError, PartialFailureError, SubmissionError
from hpcdeq.inference.bulk import denoise_share
from hpcdeq.inference.ledger import ledger_folder
from hpcdeq.inference.status import status_of

_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = (
    2.0,
    60.0,
)  # between two looks at the queue, longer each time: kind to the scheduler
_ATTEMPTS = 3  # times in a row that all jobs end without having finished a unit


def denoise_job(out: str, job: int, jobs: int) -> str:
    """Denoise the share of this process: the jobs share what was planned, and the processes of a job its part.

    Parameters
    ----------
    out
        The output archive, for which `plan_archive` has made the plan.
    job, jobs
        Which of how many jobs this process belongs to, from 0.

    Returns
    -------
    str
        The output archive.

    Raises
    ------
    PartialFailureError
        If some scenes could not be denoised; their reasons are in the ledger too.
    """
    place = place_of(os.environ)
    report = denoise_share(
        Path(out),
        worker=job * place.world_size + place.rank,
        workers=jobs * place.world_size,
        local_rank=place.local_rank,
    )
    say(f"{len(report.done)} scenes complete, {len(report.failed)} failed")
    if report.failed:
        raise PartialFailureError("not denoised: " + ", ".join(report.failed))
    return out


def jobs_folder(out: Path) -> Path:
    """Where the logs and the submissions of an output archive's jobs lie."""
    return ledger_folder(out) / "jobs"


def check_workers(request: JobRequest, out: Path, parallel: int | None) -> None:
    """See that workers can be submitted, before anything is planned: a plan removes what it does not go on with.

    Parameters and errors are those of `submit_workers`.
    """
    check_each(request, jobs_folder(out), parallel=parallel or request.nodes)
    check_no_workers(out)


def submit_workers(request: JobRequest, out: Path, parallel: int | None) -> list[Submitted]:
    """Submit as many workers as the request has nodes, for what was planned.

    Parameters
    ----------
    request
        What the workers ask for.
    out
        The output archive, for which `plan_archive` has made the plan.
    parallel
        How many may run at a time; None is all.

    Raises
    ------
    ConfigError
        If something in the request is wrong, or workers are in the queue already.
    SubmissionError
        If there is no SLURM here, or it refuses the jobs.
    """
    _cancelled(out).unlink(missing_ok=True)
    return _submit(request, out, parallel)


def _submit(request: JobRequest, out: Path, parallel: int | None) -> list[Submitted]:
    check_no_workers(out)
    items = [(str(out.absolute()), job, request.nodes) for job in range(request.nodes)]
    return submit_each(request, jobs_folder(out), denoise_job, items, parallel=parallel or request.nodes)


def cancel_workers(out: Path) -> list[str]:
    """End the workers of an output archive, so that who waits for them does not submit them again; return the jobs' numbers.

    Raises
    ------
    SubmissionError
        If SLURM does not answer, or refuses.
    """
    _cancelled(out).touch()
    return cancel(jobs_folder(out))


def see_through(request: JobRequest, out: Path, parallel: int | None) -> None:
    """Wait until all is done, and submit workers again where SLURM has lost some.

    Parameters
    ----------
    request, out, parallel
        As those of `submit_workers`.

    Raises
    ------
    PartialFailureError
        If some scenes could not be denoised.
    JobError
        If workers ended several times in a row without finishing a unit, or were cancelled.
    """
    finished, attempts = status_of(out).finished, 0
    while True:
        pause = _LOOK_SECONDS
        while _in_queue(out):
            say(str(status_of(out)))
            for job in end_held(jobs_folder(out)):
                say(
                    f"job {job} was held by SLURM, as a lost copy of it still ran on its node: ended, to be submitted again"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_LOOK_SECONDS)
        now = status_of(out)
        say(str(now))
        if now.left == 0:
            break
        if _cancelled(out).exists():
            raise JobError(f"{out}: its jobs were cancelled; the same command goes on", 1)
        attempts = 0 if now.finished > finished else attempts + 1
        finished = now.finished
        if attempts == _ATTEMPTS:
            raise JobError(
                f"the jobs ended {_ATTEMPTS} times without finishing anything; their logs in {jobs_folder(out)} say why",
                1,
            )
        first = _submit(request, out, parallel)[0]
        say(f"units are left and no job is in the queue: submitted again as {first.id}")
    if failed := now.names("failed"):
        raise PartialFailureError("not denoised: " + ", ".join(failed))


def check_no_workers(out: Path) -> None:
    """See that no workers of an output archive are in the queue.

    Raises
    ------
    ConfigError
        If there are some. They cannot be followed: what is planned, or taken out of the archive, is so at once.
    SubmissionError
        If there is no SLURM here, or it does not answer.
    """
    check_not_queued(jobs_folder(out), out, can_follow=False)


def _cancelled(out: Path) -> Path:
    """What tells who waits that the workers were cancelled."""
    return jobs_folder(out) / "cancelled"


def _in_queue(out: Path) -> bool:
    try:
        if _cancelled(out).exists():  # perhaps in the moment in which they were submitted again
            cancel(jobs_folder(out))
        return bool(queued(jobs_folder(out)))
    except SubmissionError as error:  # the scheduler is busy, or away for a while
        say(str(error))
        return True
