"""Train on a real SLURM, disturb it at random instants, and compare with undisturbed runs, byte for byte.

    python -m benchmarks.chaos [--kinds kill,cut] [--runs 20] [--seed 0] [--labs 2]

From the checkout's folder, as root (docs/slurm-lab.md). Trains on crops of real scenes if HPCDEQ_DATA names a folder with
cave/train. A line a run, then a table, also after Ctrl-C; exit code 1 if a run was not as the undisturbed one: its
folder is kept.

kill: SIGKILL of a rank; requeue: scontrol requeue; preempt: an urgent job takes a node; limit: the time limit; crash: a node loses
its power; cut: a node loses its network, in half of the runs until a second copy works elsewhere; twin: of a job of one process
the first copy, cut off, stands still until a second one is at work, then both are; many: three of these in one run.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.labs import on_labs
from hpcdeq.console import table
from tests.slurm.chaos import STRIKES, Run, Stage, make_archive
from tests.slurm.lab import Lab

NODES = 4  # one more than a job has: a lost one can be replaced


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(STRIKES), help="which (default: all)")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labs", type=int, default=2, help="clusters that work at a time (default: 2)")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    if unknown := set(kinds) - set(STRIKES):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: there are {', '.join(STRIKES)}")

    folder = Path(tempfile.mkdtemp(prefix="hpcdeq-chaos-"))
    data = os.environ.get("HPCDEQ_DATA")
    archive = make_archive(folder, Path(data) / "cave/train" if data else None)
    print(f"scenes: {f'crops of {data}' if data else 'generated'}; runs in {folder}", flush=True)
    waiting: queue.Queue[tuple[str, str]] = queue.Queue()
    for i in range(asked.runs):  # the kinds in turn: an interrupted script has seen something of each
        for kind in kinds:
            waiting.put((kind, f"{asked.seed}-{i}"))
    runs: list[Run] = []
    begin = time.monotonic()

    def work(lab: Lab, name: str, goes_on: Callable[[], bool]) -> None:
        stage = Stage(lab, folder / f"runs-{name}", archive)
        while goes_on():
            try:
                kind, seed = waiting.get_nowait()
            except queue.Empty:
                return
            run = stage.disturb(kind, seed)
            print(line(run), flush=True)
            runs.append(run)
            if not run.problems:
                stage.forget(run)

    ended = on_labs(asked.labs, NODES, folder, work)
    print(f"\n{summary(runs, kinds)}\n{(time.monotonic() - begin) / 60:.0f} minutes", flush=True)
    if not ended or any(run.problems for run in runs):
        sys.exit(1)
    shutil.rmtree(folder)


def line(run: Run) -> str:
    said = "; ".join(run.problems) or "equal"
    second = ", two live copies" if run.copies else ""
    kept = f"; {run.folder}" if run.problems else ""
    return f"{run.folder.name}: {run.seconds:.0f} s, {run.attempts} attempts in {len(run.jobs)} jobs{second}: {said}{kept}"


def summary(runs: list[Run], kinds: list[str]) -> str:
    rows = []
    for kind in kinds:
        these = [run for run in runs if run.kind == kind]
        if not these:
            continue
        attempts = Counter(run.attempts for run in these)
        seconds = [run.seconds for run in these]
        rows.append(
            (
                kind,
                str(len(these)),
                str(sum(not run.problems for run in these)),
                " ".join(f"{count}x{number}" for number, count in sorted(attempts.items())),
                str(sum(len(run.jobs) > 1 for run in these)),
                str(sum(run.copies for run in these)),
                f"{statistics.median(seconds):.0f} / {max(seconds):.0f}",
            )
        )
    columns = (
        "kind",
        "runs",
        "equal",
        "runs x attempts",
        "given again",
        "two copies",
        "seconds, median / max",
    )
    return table(columns, rows)


if __name__ == "__main__":
    main()
