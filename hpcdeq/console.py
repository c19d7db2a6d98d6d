"""What the user sees: results on stdout, talk on stderr, a bar on a terminal or in a notebook, a line now and then in a log."""

from __future__ import annotations

import html
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_LOG_SECONDS = 10.0
_NOTEBOOK_SECONDS = 0.5


_silent = False


def silence() -> None:
    """Say nothing from now on, but errors: of the processes of a job only the first speaks."""
    global _silent
    _silent = True


def say(text: str) -> None:
    """Tell the user something (stderr)."""
    if not _silent:
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Tell the user what went wrong (stderr), whichever process this is."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def result(text: str) -> None:
    """Print a result (stdout)."""
    if not _silent:
        print(text, flush=True)


def result_json(value: Any) -> None:
    """Print a result for a script (stdout)."""
    print(json.dumps(value, indent=2), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align rows of text under their column names."""
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


class Bar:
    """Progress of a known number of steps: a bar on a terminal or in a notebook, a line every few seconds in a log."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.done, self._first = what, total, done, done
        self._begin = self._last = time.monotonic()
        self._rich: Any = None
        self._cell: Any = None  # where a notebook shows it
        self._drawn = False

    def __enter__(self) -> Bar:
        if _silent:
            return self
        if (shell := _notebook()) is not None:
            self._cell = shell.display_pub
            self._draw(self._text(""))
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._rich = Progress(*columns, console=Console(stderr=True))
            self._rich.start()
            self._rich.add_task(self.what, total=self.total, completed=self.done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        if self._cell is not None:
            self._draw(self._text(""))

    def advance(self, note: str = "") -> None:
        """Count one more step; ``note`` says how things stand."""
        self.done += 1
        self.note(note)

    def note(self, note: str) -> None:
        """Say how things stand."""
        if self._rich is not None:
            self._rich.update(0, completed=self.done, description=f"{self.what} {note}".rstrip())
            return
        now = time.monotonic()
        if now - self._last < (_LOG_SECONDS if self._cell is None else _NOTEBOOK_SECONDS):
            return
        self._last = now
        if self._cell is None:
            say(self._text(note))
        else:
            self._draw(self._text(note))

    def _text(self, note: str) -> str:
        seconds = time.monotonic() - self._begin
        rate = (self.done - self._first) / max(seconds, 1e-9)
        left = (
            f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        )
        return f"{self.what}: {self.done}/{self.total}{', ' if note else ''}{note}{left}"

    def _draw(self, text: str) -> None:
        bar = f'<progress value="{self.done}" max="{self.total}"></progress> {html.escape(text)}'
        shown = {"text/html": bar, "text/plain": text}
        self._cell.publish(shown, transient={"display_id": f"hpcdeq-{id(self)}"}, update=self._drawn)
        self._drawn = True


def _notebook() -> Any:
    """Return the shell of IPython if this runs in a notebook, else None."""
    python = sys.modules.get("IPython")
    shell = None if python is None else python.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass items on, showing how many are done."""
    with Bar(what, total) as bar:
        for item in items:
            yield item
            bar.advance()


def duration(seconds: float) -> str:
    """Tell how long something takes, in the unit that people would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
