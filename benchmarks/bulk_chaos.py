"""Denoise an archive on a real SLURM, disturb it at random instants, and compare with an undisturbed process, byte for byte.

    python -m benchmarks.bulk_chaos [--disturbances 200] [--kinds kill,cut] [--each 8] [--seed 0] [--labs 3]

From the checkout's folder, as root (docs/slurm-lab.md). The archive has 24 scenes, some of 1300 x 1300 x 31; with HPCDEQ_DATA (a
folder with cave/train and cave/val) 14 of them are real ones. A line a run, then a table, also after Ctrl-C; exit code 1 if a run
was not as the undisturbed one: its folder is kept.

kill: SIGKILL of a worker; requeue: scontrol requeue of a job; limit: the signal before its time is over; preempt: an urgent job
takes a node; crash: a node loses its power; blip: a node loses its network for seconds; cut: until a second copy of its job works
elsewhere; stop: the same, and the first copy, which stood still, goes on beside the second; submitter: SIGKILL of the command that
submits. Those count that met a living process. Meanwhile `hpcdeq status` is called at random instants.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.labs import on_labs
from hpcdeq.console import table
from tests.slurm import scenes
from tests.slurm.bulk_chaos import KINDS, Run, Stage, make_work
from tests.slurm.lab import Lab

NODES = 4
SCENES = 24
MADE = [(1300, 1300), (1300, 1300), (1300, 1300), (700, 390), (390, 130), (270, 601), (130, 1300)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--disturbances", type=int, default=200, help="that hit, in all (default: 200)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which (default: all)")
    parser.add_argument("--each", type=int, default=8, help="disturbances of a run (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labs", type=int, default=3, help="clusters that work at a time (default: 3)")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: there are {', '.join(KINDS)}")

    folder = Path(tempfile.mkdtemp(prefix="hpcdeq-chaos-"))
    real = real_scenes()
    sizes = [*MADE, *itertools.repeat((260, 325), SCENES - len(real) - len(MADE))]
    work = make_work(folder / "work", real, 512, sizes)
    print(
        f"{len(real)} real and {len(sizes)} made scenes, {work.units} units, {work.seconds:.0f} s by one process; runs in {folder}",
        flush=True,
    )
    runs: list[Run] = []
    numbers = itertools.count()
    lock = threading.Lock()
    begin = time.monotonic()

    def disturb(lab: Lab, name: str, goes_on: Callable[[], bool]) -> None:
        stage = Stage(lab, folder / f"runs-{name}", work)
        while goes_on() and hits(runs) < asked.disturbances:
            with lock:
                seed = f"{asked.seed}-{next(numbers)}"
            run = stage.disturb(drawn(kinds, asked.each, seed), seed)
            print(line(run), flush=True)
            runs.append(run)
            if not run.problems:
                stage.forget(run)

    ended = on_labs(asked.labs, NODES, folder, disturb)
    print(f"\n{summary(runs, kinds)}\n{(time.monotonic() - begin) / 60:.0f} minutes", flush=True)
    if not ended or any(run.problems for run in runs):
        sys.exit(1)
    shutil.rmtree(folder)


def real_scenes() -> list[Path]:
    data = os.environ.get("HPCDEQ_DATA")
    return (
        [scene for part in ("train", "val") for scene in scenes.folders(Path(data) / "cave" / part)]
        if data
        else []
    )


def drawn(kinds: list[str], count: int, seed: str) -> list[str]:
    """So many, each kind as often as any other, in any order."""
    rng = random.Random(f"{seed}-kinds")
    rounds = [rng.sample(kinds, len(kinds)) for _ in range(-(-count // len(kinds)))]
    return [kind for one in rounds for kind in one][:count]


def hits(runs: list[Run]) -> int:
    return sum(strike.hit for run in runs for strike in run.strikes)


def line(run: Run) -> str:
    struck = " ".join(
        f"{strike.kind}{'' if strike.hit else ' (too late)'}{' (two copies)' if strike.copies else ''}"
        for strike in run.strikes
    )
    said = "\n  ".join(run.problems) or "equal"
    kept = f"\n  kept: {run.folder}" if run.problems else ""
    return f"{run.folder.name}: {run.nodes} jobs, {run.seconds:.0f} s, {run.commands} commands: {struck}: {said}{kept}"


def summary(runs: list[Run], kinds: list[str]) -> str:
    rows = []
    for kind in kinds:
        these = [strike for run in runs for strike in run.strikes if strike.kind == kind]
        of_them = [run for run in runs if any(strike.kind == kind for strike in run.strikes)]
        rows.append(
            (
                kind,
                str(len(these)),
                str(sum(strike.hit for strike in these)),
                str(sum(strike.copies for strike in these)),
                f"{sum(not run.problems for run in of_them)} of {len(of_them)}",
            )
        )
    columns = ("kind", "disturbances", "that hit", "two live copies", "runs equal")
    seconds = [run.seconds for run in runs] or [0.0]
    return (
        f"{table(columns, rows)}\n{hits(runs)} disturbances that hit, in {len(runs)} runs of {statistics.median(seconds):.0f} s "
        f"(longest {max(seconds):.0f}); {sum(not run.problems for run in runs)} runs equal, "
        f"{sum(run.commands > 1 for run in runs)} with the command given again, {sum(run.asked for run in runs)} calls of status"
    )


if __name__ == "__main__":
    main()
