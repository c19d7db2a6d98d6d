"""How the benchmarks measure: seconds of contestants taken in turn, and the peak memory of a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Freed memory goes back to the system at once, so that the peak is that of live tensors.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def seconds_in_turn(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Run all contestants in turn, ``repeats`` times after a warm-up; the seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def memory(field: str) -> float:
    """Return a field of this process's status in MiB; VmHWM is ru_maxrss, but that also counts the parent before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def printed_by(script: str, options: list[str]) -> float:
    """The last number that a script prints in a process of its own, where freed memory is given back."""
    run = subprocess.run(
        [sys.executable, script, *options],
        env={**os.environ, **_ALLOCATOR},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(run.stdout.split()[-1])
