"""Submit work as a job: to SLURM, or to processes of this machine. Nothing else knows submitit.

What submitit remembers of a job is not relied on: its count of timeouts, its rewritten pickles and its view of a job's state were
each seen to be wrong. A job goes on from the files that the work itself wrote.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.signals import STOP_SIGNALS, StopRequest, stop_requests
from hpcdeq.console import complain, say
from hpcdeq.errors import (
    ConfigError,
    FencedError,
    HpcdeqError,
    JobError,
    MissingExtraError,
    PartialFailureError,
    PreemptedError,
    SubmissionError,
)

if TYPE_CHECKING:
    import submitit

# Signals that come while Python starts would end the job as failed. Ignored, they leave it to SLURM, which ends or requeues it.
_PYTHON = ["bash", "-c", 'trap "" USR1 USR2 TERM; exec "$@"', "hpcdeq", sys.executable]
_SETUP = ["export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}"]
_HELD = re.compile("launch.failed.requeued.held")  # with spaces or with underscores, by its version
_FOLDER = re.compile(r"[\w@+=:,./ -]+")
_NO_LIMIT_MINUTES = 365 * 24 * 60
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 30.0
_REQUEUE_ATTEMPTS, _REQUEUE_PAUSE_SECONDS = 3, 2.0


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
        executor = _slurm_executor(request, folder)
    else:
        executor = _slurm_executor(replace(request, nodes=1), folder, together=False)
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
    executor = _slurm_executor(request, folder)
    check_slurm_is_here()
    _make_private(folder)
    if "dependency" not in request.slurm:
        check_not_queued(folder, folder.parent, can_follow=True)
    from submitit.core.utils import FailedJobError

    with _outside_of_any_job():
        try:
            job = executor.submit(_Task(work), *arguments)
        except FailedJobError as error:
            raise SubmissionError(f"sbatch did not take the job: {str(error).strip()}") from error
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
    _check_own(folder)


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
    executor = _slurm_executor(replace(request, nodes=1), folder, together=False)
    check_slurm_is_here()
    arrays = _arrays(len(items), parallel)
    _make_private(folder)
    from submitit.core.utils import FailedJobError

    jobs: list[Any] = []
    with _outside_of_any_job():
        for number in range(arrays):
            part = items[number::arrays]
            executor.update_parameters(array_parallelism=len(range(number, parallel, arrays)))
            try:
                jobs += executor.map_array(_Task(work, together=False), *zip(*part, strict=True))
            except FailedJobError as error:
                words = f"sbatch did not take the job: {str(error).strip()}"
                if jobs:
                    words += f"; {_take_back(jobs)}"
                raise SubmissionError(words) from error
    return [Submitted(job.job_id, job.paths.stdout, job.paths.submission_file) for job in jobs]


def _take_back(jobs: Sequence[Any]) -> str:
    """End the arrays of some jobs; what became of them."""
    taken = sorted({job.job_id.partition("_")[0] for job in jobs})
    code, words = _slurm("scancel", *taken)
    if code != 0:
        return f"it took the others, and they could not be ended: scancel {' '.join(taken)}: {words}"
    return f"the jobs that it took before are ended again: {', '.join(taken)}"


def _arrays(jobs: int, parallel: int) -> int:
    """How many arrays there must be."""
    largest = _largest_array()
    arrays = -(-jobs // largest)
    if arrays > parallel:
        raise ConfigError(
            f"{jobs} jobs are {arrays} arrays, as this site lets one have {largest}: not fewer than {arrays} jobs can run at a "
            f"time, got {parallel}; ask for at most {parallel * largest} jobs"
        )
    return arrays


def _largest_array() -> int:
    """How many jobs the site lets an array have; SLURM's default if it does not say."""
    _, words = _slurm("scontrol", "show", "config")
    told = re.search(r"MaxArraySize\s*=\s*([0-9]+)", words)
    return max(1, int(told[1]) - 1) if told else 1000


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
    code, words = _slurm("squeue", "--noheader", "--me", "--format=%F")
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
        code, words = _slurm("scancel", *jobs)
        if code != 0:
            raise SubmissionError(f"scancel {' '.join(jobs)}: {words}")
    return jobs


def end_held(folder: Path) -> list[str]:
    """End the jobs, submitted with a folder, that SLURM would hold for ever, and return their numbers.

    It does so with a job that was to start on a node where a copy of it, once lost from sight, still ran.
    """
    before = {path.name.split("_")[0] for path in folder.glob("*_submission.sh")}
    code, words = _slurm("squeue", "--noheader", "--me", "--array", "--states=PENDING", "--format=%F %i %r")
    lines = [line.split(maxsplit=2) for line in words.splitlines()] if code == 0 else []
    held = [job for array, job, reason in lines if array in before and _HELD.search(reason)]
    if held:
        _slurm("scancel", *held)
    return held


def check_local(request: JobRequest, folder: Path) -> None:
    """See that nothing in what is asked for keeps `run_local` from beginning; it writes nothing.

    Raises
    ------
    ConfigError, MissingExtraError
        As `run_local`.
    """
    if request.nodes > 1:
        raise ConfigError(f"--cluster local is this machine alone: --nodes must be 1, got {request.nodes}")
    _submitit()
    _visible_gpus()
    _check_own(folder)


def run_local(request: JobRequest, folder: Path, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a job as processes of this machine, show what rank 0 says, and wait for its end.

    A stop signal is passed on to the processes. Parameters are those of `submit`; without a time there is no limit.

    Returns
    -------
    Any
        What ``work`` returned in rank 0.

    Raises
    ------
    ConfigError
        If more than one node is asked for, or the folder is not the user's own.
    MissingExtraError
        If submitit is not installed.
    JobError
        If a process did not end well; with its exit code (75: all stopped at a checkpoint).
    """
    check_local(request, folder)
    _make_private(folder)
    executor = _submitit().LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=request.tasks,
        gpus_per_node=request.gpus_per_node,
        visible_gpus=_visible_gpus(),
        timeout_min=_NO_LIMIT_MINUTES if request.time is None else request.minutes,
        signal_delay_s=request.signal_seconds,
        stderr_to_stdout=True,
    )
    with stop_requests() as asked, _outside_of_any_job(), _meeting_here(request):
        job = executor.submit(_Task(work), *arguments)
        say(
            f"{request.tasks} processes; their logs: {job.paths.stdout.with_name(f'{job.job_id}_RANK_log.out')}"
        )
        try:
            _follow(job, asked)
        except KeyboardInterrupt:
            job.cancel()
            while not job.done():
                time.sleep(_POLL_SECONDS)
            raise
    return _ended(job)


@dataclass(frozen=True)
class _Ended:
    """How a task ended."""

    exit_code: int
    value: Any = None


class _Task:
    """What every task of a job runs: the work, and what to do when it was asked to stop."""

    def __init__(self, work: Callable[..., Any], *, together: bool = True) -> None:
        self.work = work
        self.together = together
        """Whether all processes of the job stop when one is asked to, so that the first can speak for them."""

    def __call__(self, *arguments: Any) -> _Ended:
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it would call whatever ended a success
        environment = _submitit().JobEnvironment()
        # submitit refuses to write its last file when a killed attempt left half of one.
        result = environment.paths.result_pickle
        result.with_suffix(f"{result.suffix}.save_tmp").unlink(missing_ok=True)
        local = environment.cluster == "local"
        if local:
            rank, size = str(environment.global_rank), str(environment.num_tasks)
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
        # When the work is done nothing is left to stop, and Python forgets its handlers while it ends: a signal would fail the job.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with stop_requests() as asked:  # from here on, not only while the work listens
            try:
                return _Ended(0, self.work(*arguments))
            except PreemptedError as error:
                say(str(error))
                # With any other code than 0, srun would end the job as failed before it is queued again.
                code = 0
                speaks = environment.global_rank == 0 or not self.together
                if local or (speaks and not _goes_on(environment.job_id, asked.signal)):
                    code = error.exit_code
            except HpcdeqError as error:
                complain(str(error))
                # At a failure srun ends the step of that number: also that of a newer copy, if this one was lost from sight.
                fenced = isinstance(error, FencedError)
                outdated = not local and (fenced or _is_outdated(environment.job_id))
                code = 0 if outdated else error.exit_code
        if local:
            return _Ended(code)
        sys.exit(code)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the same submission: the work finds its progress itself. For a signal in the moment before the work begins."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def _goes_on(job: str, asked: signal.Signals | None) -> bool:
    """See that a job which stopped at a checkpoint is queued again, unless SLURM has decided about it. False if neither is so."""
    state, preempted, _ = _seen_by_slurm(job)
    if state not in ("RUNNING", None):  # scancel, scontrol requeue
        say(f"job {job} is being ended or queued again by SLURM")
        return True
    # SIGTERM to a job that counts as running comes from srun, as one of its tasks died, or it begins the grace time of a
    # preemption: a job that ends by itself in that time is not requeued by SLURM.
    if asked not in (signal.SIGUSR1, signal.SIGUSR2) and not preempted:
        complain(
            f"job {job} is not queued again: it was stopped by neither its time limit nor a preemption; the other ranks' logs "
            "may say why. Submit it again to go on"
        )
        return False
    for _ in range(_REQUEUE_ATTEMPTS):
        code, words = _slurm("scontrol", "requeue", job)
        if code == 0:
            say(f"job {job} is queued again, to go on from its checkpoint")
            return True
        state, _, _ = _seen_by_slurm(job)
        if state not in ("RUNNING", None):
            say(f"job {job} is being ended or queued again by SLURM")
            return True
        time.sleep(_REQUEUE_PAUSE_SECONDS)
    complain(f"job {job} could not be queued again ({words}); submit it again to go on")
    return False


def _is_outdated(job: str) -> bool:
    """Whether SLURM has started this job again meanwhile."""
    return _seen_by_slurm(job)[2] > int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _seen_by_slurm(job: str) -> tuple[str | None, bool, int]:
    """State of a job, None if SLURM does not say; whether it is being preempted; and how often it was started again."""
    fields = "State:20,PreemptTime:30,RestartCnt:10"
    code, words = _slurm("squeue", "--noheader", f"--jobs={job}", f"--Format={fields}")
    if code != 0:
        return None, False, 0
    state, preemption, restarts = words.split() if words else ("", "N/A", "0")
    return state, preemption != "N/A", int(restarts)


def _slurm(*command: str) -> tuple[int, str]:
    """Exit code and words of a SLURM command; -1 if it could not run, or did not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError("submitit", "slurm", "hpcdeq submit") from error
    return submitit


def _slurm_executor(request: JobRequest, folder: Path, *, together: bool = True) -> submitit.SlurmExecutor:
    _submitit()
    import shlex

    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # the text can be made where there is no srun

    if not _FOLDER.fullmatch(str(folder.absolute())):
        raise ConfigError(
            f"the path {str(folder.absolute())!r} goes into the text for sbatch, so it may hold letters, digits, spaces and "
            "_ @ + = : , . / - only; choose another with run=FOLDER or --out FOLDER"
        )
    executor = Executor(folder, python=shlex.join(_PYTHON))
    options: dict[str, Any] = {
        "cpus-per-task": request.cpus_per_task,
        "gpus-per-node": request.gpus_per_node or None,
        "mem": request.mem,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        # To the tasks, not to the batch shell. submitit would take the signal's name from a variable.
        "signal": f"USR2@{request.signal_seconds}",
        "requeue": True,
    }
    own = [f"--cpus-per-task={request.cpus_per_task}"] if request.cpus_per_task else []
    executor.update_parameters(
        time=request.minutes,
        nodes=request.nodes,
        ntasks_per_node=request.tasks,
        job_name=request.job_name or "hpcdeq",
        wckey=None,
        stderr_to_stdout=True,
        setup=_SETUP,
        # One dead rank ends all that work together; one that is done waits for the others; srun does not take the number of
        # cores from sbatch.
        srun_args=["--open-mode=append", f"--kill-on-bad-exit={int(together)}", "--wait=0", *own],
        additional_parameters={key: value for key, value in options.items() if value is not None}
        | {key: value or True for key, value in request.slurm.items()},
    )
    return executor


def check_slurm_is_here() -> None:
    """Raise SubmissionError unless jobs can be submitted from this machine."""
    if not is_slurm_here():
        raise SubmissionError(
            "sbatch is not on PATH: submit from a login node of the cluster; --dry-run and --cluster local need no SLURM"
        )


def _check_own(folder: Path) -> None:
    """Refuse a folder that is somebody else's."""
    if folder.is_symlink() or (
        folder.exists() and (not folder.is_dir() or folder.stat().st_uid != os.getuid())
    ):
        raise ConfigError(
            f"{folder} must be a folder of your own: who can write to it can run code in your jobs; remove it, or choose "
            "another with run=FOLDER or --out FOLDER"
        )


def _make_private(folder: Path) -> None:
    """Make the folder, or make it private; refuse it if it is somebody else's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _check_own(folder)
    folder.chmod(0o700)


def is_slurm_here() -> bool:
    """Whether jobs could be submitted, and seen, from this machine."""
    return shutil.which("sbatch") is not None


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


@contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """Hide what describes the job or the processes that this one belongs to: a new job must not take it for its own."""
    places = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in places or (name.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _meeting_here(request: JobRequest) -> Iterator[None]:
    """Tell the processes that are started meanwhile where to meet, and how many threads each has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = request.cpus_per_task or max(1, len(os.sched_getaffinity(0)) // request.tasks)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
    before = os.environ.copy()
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _visible_gpus() -> list[int] | tuple[()]:
    """The GPUs that this process may use, if it was told; submitit would begin at the first of the machine."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not told:
        return ()
    try:
        return [int(number) for number in told.split(",")]
    except ValueError:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={told}: --cluster local needs numbers of GPUs there"
        ) from None


def _follow(job: Any, asked: StopRequest) -> None:
    """Show what rank 0 says until the job is over, passing a stop signal on."""
    told = False
    read = 0
    while True:
        over = job.done()
        if job.paths.stdout.exists():
            with job.paths.stdout.open("rb") as log:
                log.seek(read)
                # Whole lines, unless there will be no more.
                new = log.read()
                new = new if over else new[: new.rfind(b"\n") + 1]
            read += len(new)
            if new:
                say(new.decode(errors="replace").rstrip("\n"))
        if over:
            return
        if asked and not told:
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller passes on this one only
            told = True
        time.sleep(_POLL_SECONDS)


def _ended(job: Any) -> Any:
    """What rank 0 returned; or the error that the worst end stands for: a failure, a stop, or work of which a part failed."""
    tasks = [job.task(rank) for rank in range(job.num_tasks)]
    ended = [_end_of(task) for task in tasks]
    codes = [end.exit_code for end in ended]
    stopped, partial = PreemptedError.exit_code, PartialFailureError.exit_code
    for rank, code in enumerate(codes):
        if code not in (0, stopped, partial):
            raise JobError(f"rank {rank} of {len(codes)} failed; its log: {tasks[rank].paths.stdout}", code)
    if stopped in codes:
        raise JobError("stopped at a checkpoint; run the same command again to go on", stopped)
    if partial in codes:
        logs = ", ".join(
            str(task.paths.stdout) for task, code in zip(tasks, codes, strict=True) if code == partial
        )
        raise JobError(f"finished, but some of it failed; the logs that name it: {logs}", partial)
    return ended[0].value


def _end_of(task: Any) -> _Ended:
    from submitit.core.utils import FailedJobError

    if not task.paths.result_pickle.exists():  # killed; submitit would wait for it
        return _Ended(1)
    try:
        end = task.result()
    except FailedJobError:  # the traceback is in the log
        return _Ended(1)
    assert isinstance(end, _Ended)
    return end
