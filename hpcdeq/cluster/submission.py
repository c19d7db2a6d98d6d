"""Hand work to SLURM, as a job or as an array of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcdeq.cluster.executors import (
    check_own,
    import_submitit,
    make_private,
    outside_of_any_job,
    slurm_executor,
)
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.slurm import ask, check_not_queued, check_slurm_is_here, largest_array
from hpcdeq.cluster.task import Task
from hpcdeq.errors import ConfigError, SubmissionError


@dataclass(frozen=True)
class Submitted:
    """A job in the queue."""

    id: str
    """Its number."""
    log: Path
    """What rank 0 says; the other ranks' logs are beside it."""
    script: Path
    """What sbatch was given."""


def sbatch_text(request: JobRequest, folder: Path, *, parallel: int | None = None) -> str:
    """Return what sbatch would be given, without SLURM and without writing anything.

    Parameters
    ----------
    request
        What the job asks for.
    folder
        Where its logs and the submission would lie.
    parallel
        The text of `submit_each` with as many jobs as the request has nodes, so many of them at a time.

    Raises
    ------
    ConfigError
        If the request has no time, or the folder's path has characters that SLURM or a shell could take for more than a path.
    MissingExtraError
        If submitit is not installed.
    """
    if parallel is None:
        executor = slurm_executor(request, folder)
    else:
        executor = slurm_executor(replace(request, nodes=1), folder, together=False)
        executor.update_parameters(array_parallelism=parallel)
        if request.nodes > 1:
            executor.parameters["map_count"] = request.nodes
    # submitit has no public way to see the text: these private names are used here only.
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(request: JobRequest, folder: Path, work: Callable[..., Any], *arguments: Any) -> Submitted:
    """Hand a job to SLURM, and return at once.

    Parameters
    ----------
    request
        What the job asks for.
    folder
        Where its logs, its sbatch text and the submission lie; it becomes private to the user, as whoever can write to it can run
        code in the job.
    work
        A function of a module, run in every task, found again by its name. It ends with `PreemptedError` when it was asked to stop
        and did so at a checkpoint: then the job is queued again.
    arguments
        Its arguments: plain values, as they are pickled.

    Raises
    ------
    ConfigError
        As `sbatch_text`; or if a job with this folder is in the queue already.
    SubmissionError
        If there is no SLURM here, or it refuses the job; with its words.
    """
    executor = slurm_executor(request, folder)
    check_slurm_is_here()
    make_private(folder)
    if "dependency" not in request.slurm:
        check_not_queued(folder, folder.parent, can_follow=True)
    with outside_of_any_job(), _told_by_sbatch():
        job = executor.submit(Task(work), *arguments)
    return Submitted(job.job_id, job.paths.stdout, job.paths.submission_file)


def check_each(request: JobRequest, folder: Path, *, parallel: int) -> None:
    """See that nothing in what is asked for keeps `submit_each` from handing it to SLURM; it writes nothing.

    Parameters are those of `submit_each`, with as many items as the request has nodes.

    Raises
    ------
    ConfigError, MissingExtraError, SubmissionError
        As `sbatch_text` and `submit_each`.
    """
    sbatch_text(request, folder, parallel=parallel)
    check_slurm_is_here()
    _arrays(request.nodes, parallel)
    check_own(folder)


def submit_each(
    request: JobRequest,
    folder: Path,
    work: Callable[..., Any],
    items: Sequence[tuple[Any, ...]],
    *,
    parallel: int,
) -> list[Submitted]:
    """Hand a job array to SLURM: jobs on a node each that know nothing of each other, and return at once.

    Each is queued again by itself when one of its processes has stopped because it was asked to.

    Parameters
    ----------
    request
        What each job asks for, but on one node.
    folder, work
        As those of `submit`.
    items
        The arguments of each job.
    parallel
        How many of them may run at a time.

    Returns
    -------
    list
        The jobs, in the order of the items. A site that bounds the size of arrays gets several, each with its part of ``parallel``.

    Raises
    ------
    ConfigError
        As `sbatch_text`; or if there must be more arrays than jobs may run at a time.
    SubmissionError
        If there is no SLURM here, or it refuses some of the jobs; with its words. Then none is left in the queue.
    """
    executor = slurm_executor(replace(request, nodes=1), folder, together=False)
    check_slurm_is_here()
    arrays = _arrays(len(items), parallel)
    make_private(folder)
    jobs: list[Any] = []
    with outside_of_any_job():
        for number in range(arrays):
            part = items[number::arrays]
            executor.update_parameters(array_parallelism=len(range(number, parallel, arrays)))
            try:
                with _told_by_sbatch():
                    jobs += executor.map_array(Task(work, together=False), *zip(*part, strict=True))
            except SubmissionError as error:
                if not jobs:
                    raise
                raise SubmissionError(f"{_take_back(jobs)}; {error}") from error
    return [Submitted(job.job_id, job.paths.stdout, job.paths.submission_file) for job in jobs]


@contextmanager
def _told_by_sbatch() -> Iterator[None]:
    """Say what sbatch says when it refuses a job: in the error only, as submitit prints it too."""
    refused = import_submitit().core.utils.FailedJobError
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except refused as error:
        raise SubmissionError(
            f"sbatch did not take the job: {str(error).strip()}\n"
            'what there is here, partitions, longest times, cores, memory and GPUs: sinfo -o "%P %l %c %m %G"; '
            "whether SLURM answers at all: hpcdeq doctor"
        ) from error


def _take_back(jobs: Sequence[Any]) -> str:
    """End the arrays of some jobs; what became of them."""
    taken = sorted({job.job_id.partition("_")[0] for job in jobs})
    code, words = ask("scancel", *taken)
    if code != 0:
        return (
            f"sbatch took some of the jobs, and they could not be ended: scancel {' '.join(taken)}: {words}"
        )
    return f"the jobs that sbatch took before are ended again: {', '.join(taken)}"


def _arrays(jobs: int, parallel: int) -> int:
    """How many arrays there must be."""
    largest = largest_array()
    arrays = -(-jobs // largest)
    if arrays > parallel:
        raise ConfigError(
            f"{jobs} jobs are {arrays} arrays, as this site lets one have {largest}: not fewer than {arrays} jobs can run at a "
            f"time, got {parallel}; ask for at most {parallel * largest} jobs"
        )
    return arrays
