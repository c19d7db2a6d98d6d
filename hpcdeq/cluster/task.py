"""What runs inside a job: the work, how it ends, and whether the job is queued again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpcdeq.cluster.executors import import_submitit
from hpcdeq.cluster.signals import STOP_SIGNALS, stop_requests
from hpcdeq.cluster.slurm import ask, seen_by_slurm
from hpcdeq.console import complain, say
from hpcdeq.errors import FencedError, HpcdeqError, PreemptedError

_REQUEUE_ATTEMPTS, _REQUEUE_PAUSE_SECONDS = 3, 2.0


@dataclass(frozen=True)
class Ended:
    """How a task ended."""

    exit_code: int
    value: Any = None
    """What the work returned."""


class Task:
    """What every task of a job runs: the work, and what to do when it was asked to stop."""

    def __init__(self, work: Callable[..., Any], *, together: bool = True) -> None:
        self.work = work
        self.together = together
        """Whether all processes of the job stop when one is asked to, so that the first can speak for them."""

    def __call__(self, *arguments: Any) -> Ended:
        """Do the work. On SLURM whatever does not end well ends the process; on this machine its exit code is returned."""
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it would call whatever ended a success
        environment = import_submitit().JobEnvironment()
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
                return Ended(0, self.work(*arguments))
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
            return Ended(code)
        sys.exit(code)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the same submission: the work finds its progress itself. For a signal in the moment before the work begins."""
        return import_submitit().helpers.DelayedSubmission(self, *arguments)


def _goes_on(job: str, asked: signal.Signals | None) -> bool:
    """See that a job which stopped at a checkpoint is queued again, unless SLURM has decided about it. False if neither is so."""
    state, preempted, _ = seen_by_slurm(job)
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
    # Said before it is asked: once it is granted, SLURM ends this process, at times before it can say another word.
    say(f"job {job} asks to be queued again, to go on from its checkpoint")
    for _ in range(_REQUEUE_ATTEMPTS):
        code, words = ask("scontrol", "requeue", job)
        if code == 0:
            return True
        state, _, _ = seen_by_slurm(job)
        if state not in ("RUNNING", None):
            say(f"job {job} is being ended or queued again by SLURM")
            return True
        time.sleep(_REQUEUE_PAUSE_SECONDS)
    complain(f"job {job} could not be queued again ({words}); submit it again to go on")
    return False


def _is_outdated(job: str) -> bool:
    """Whether SLURM has started this job again meanwhile."""
    return seen_by_slurm(job)[2] > int(os.environ.get("SLURM_RESTART_COUNT", "0"))
