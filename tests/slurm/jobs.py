"""What the jobs of the tests do; found by name in the processes of a job, so not in a test file."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.signals import stop_requests
from hpcdeq.errors import ConfigError, FencedError, PartialFailureError, PeerError, PreemptedError


def meet(folder: str) -> str:
    """Write down this process's place, and what all ranks add up to."""
    import torch

    from hpcdeq.cluster.group import process_group

    place = place_of(os.environ)
    with process_group(place, torch.device("cpu"), 60) as team:
        total = team.sum(torch.tensor(place.rank))
    told = {
        name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
    }
    found = asdict(place) | {"total": int(total), "host": os.uname().nodename, "told": told}
    (Path(folder) / f"{place.rank}.json").write_text(json.dumps(found))
    return f"rank {place.rank} met"


def count(folder: str, steps: int, seconds: float, later: int | None = None) -> None:
    """Take steps, each a line in ``folder/RANK``, after those that are there already; stop when asked, as training does.

    A later attempt takes ``later`` of them at most, if that is said.
    """
    place = place_of(os.environ)
    taken = Path(folder) / str(place.rank)
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    first = len(taken.read_text().splitlines()) if taken.exists() else 0
    if attempt != "0" and later is not None:
        steps = min(steps, first + later)
    with stop_requests() as asked:
        for step in range(first, steps):
            time.sleep(seconds)
            with taken.open("a") as file:
                file.write(f"{step} {attempt}\n")
            if asked:
                if place.rank == 0:
                    time.sleep(1)  # it alone writes the checkpoint: it is the last to end
                raise PreemptedError(f"stopped after step {step}")


def end(how: dict[str, str]) -> str:
    """End each rank in its own way."""
    rank = place_of(os.environ).rank
    match how.get(str(rank), "well"):
        case "config":
            raise ConfigError(f"rank {rank} has a wrong setting")
        case "crash":
            raise ZeroDivisionError
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            raise PreemptedError("stopped at step 7")
        case "partial":
            raise PartialFailureError("one scene failed")
    return f"rank {rank} did well"


def overtaken(folder: str, how: str) -> None:
    """Begin, and end with an error once a second copy is at work, which goes on for some seconds."""
    second = Path(folder) / f"{how}-second"
    if os.environ.get("SLURM_RESTART_COUNT"):
        second.touch()
        with stop_requests() as asked:
            time.sleep(8)
            if asked:
                raise PreemptedError("the second copy was asked to stop")
        return
    (Path(folder) / f"{how}-first").touch()
    while not second.exists():
        time.sleep(0.1)
    raise FencedError("overtaken") if how == "fenced" else PeerError("alone")


def late(folder: str) -> None:
    """Begin, be asked to stop, and only then begin to listen."""
    begun = Path(folder) / "begun"
    with stop_requests() as asked:  # that of the job: the same as the one below
        begun.write_text(str(asked.signal))
        while not asked:
            time.sleep(0.05)
    with stop_requests() as asked:
        if asked.signal is not None:
            raise PreemptedError(f"{asked.signal.name} came before")


class _Slow:
    """Takes long to go when Python ends."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / "ending"

    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self.file.touch()
        sleep(2)


def linger(folder: str) -> None:
    """Do nothing, and be slow to end after that."""
    global _slow
    _slow = _Slow(folder)
