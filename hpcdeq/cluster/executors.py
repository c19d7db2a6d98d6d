"""submitit's executors, and what they need around them. Nothing else imports submitit.

What submitit remembers of a job is not relied on: its count of timeouts, its rewritten pickles and its view of a job's state were
each seen to be wrong. A job goes on from the files that the work itself wrote.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcdeq.cluster.request import JobRequest
from hpcdeq.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import submitit

# Signals that come while Python starts would end the job as failed. Ignored, they leave it to SLURM, which ends or requeues it.
_PYTHON = ["bash", "-c", 'trap "" USR1 USR2 TERM; exec "$@"', "hpcdeq", sys.executable]
_SETUP = ["export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}"]
_FOLDER = re.compile(r"[\w@+=:,./ -]+")


def import_submitit() -> Any:
    """Return the library, or say what to install."""
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError("submitit", "slurm", "hpcdeq submit") from error
    return submitit


def slurm_executor(request: JobRequest, folder: Path, *, together: bool = True) -> submitit.SlurmExecutor:
    """Return what hands a request to SLURM from a folder; without `together` the processes of a job do not end each other."""
    import_submitit()
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


def check_own(folder: Path) -> None:
    """Refuse a folder that is somebody else's."""
    if folder.is_symlink() or (
        folder.exists() and (not folder.is_dir() or folder.stat().st_uid != os.getuid())
    ):
        raise ConfigError(
            f"{folder} must be a folder of your own: who can write to it can run code in your jobs; remove it, or choose "
            "another with run=FOLDER or --out FOLDER"
        )


def make_private(folder: Path) -> None:
    """Make the folder, or make it private; refuse it if it is somebody else's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        check_own(folder)
    folder.chmod(0o700)


@contextmanager
def outside_of_any_job() -> Iterator[None]:
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
