"""Run work as processes of this machine: what a job is where there is no SLURM."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcdeq.cluster.executors import check_own, import_submitit, make_private, outside_of_any_job
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.signals import StopRequest, stop_requests
from hpcdeq.cluster.task import Ended, Task
from hpcdeq.console import say
from hpcdeq.errors import ConfigError, JobError, PartialFailureError, PreemptedError

_NO_LIMIT_MINUTES = 365 * 24 * 60
_POLL_SECONDS = 0.2


def check_local(request: JobRequest, folder: Path) -> None:
    """See that nothing in what is asked for keeps `run_local` from beginning; it writes nothing.

    Raises
    ------
    ConfigError, MissingExtraError
        As `run_local`.
    """
    if request.nodes > 1:
        raise ConfigError(f"--cluster local is this machine alone: --nodes must be 1, got {request.nodes}")
    import_submitit()
    _visible_gpus()
    check_own(folder)


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
    make_private(folder)
    executor = import_submitit().LocalExecutor(folder)
    executor.update_parameters(
        tasks_per_node=request.tasks,
        gpus_per_node=request.gpus_per_node,
        visible_gpus=_visible_gpus(),
        timeout_min=_NO_LIMIT_MINUTES if request.time is None else request.minutes,
        signal_delay_s=request.signal_seconds,
        stderr_to_stdout=True,
    )
    with stop_requests() as asked, outside_of_any_job(), _meeting_here(request):
        job = executor.submit(Task(work), *arguments)
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


def _end_of(task: Any) -> Ended:
    if not task.paths.result_pickle.exists():  # killed; submitit would wait for it
        return Ended(1)
    try:
        end = task.result()
    except import_submitit().core.utils.FailedJobError:  # the traceback is in the log
        return Ended(1)
    assert isinstance(end, Ended)
    return end
