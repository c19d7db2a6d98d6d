"""What verbs print: results on stdout, talk on stderr, a bar on a terminal and a line now and then in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def say(text: str) -> None:
    """Tell the user something (stderr)."""
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Print a result (stdout)."""
    print(text, flush=True)


def result_json(value: Any) -> None:
    """Print a result for a script (stdout)."""
    print(json.dumps(value, indent=2), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align rows of text under their column names."""
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def progress(items: Iterable[T], total: int, what: str, every: float = 10.0) -> Iterator[T]:
    """Pass items on, with a bar on a terminal and a line every few seconds in a log."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total=total, console=Console(stderr=True))
        return
    begin = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            last = now
            say(f"{what}: {done}/{total}, {(now - begin) / done * (total - done):.0f} s left")
