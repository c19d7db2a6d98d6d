"""``hpcdeq status``: how far a bulk run or a training is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hpcdeq.inference.status import Status
    from hpcdeq.training.status import TrainingStatus

_LOOK_SECONDS = 10.0


def status(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Archive that denoise writes, or folder of a training run."),
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 10 s, until nothing is left to do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Of denoising, write a page: the archive as a grid, pictures before and after."),
    ] = None,
) -> None:
    """Say how far denoising or a training is, and what needs a look.

    Counts scenes and units, or steps, and tells how long the rest will take.
    """
    from hpcdeq.console import say
    from hpcdeq.errors import ConfigError
    from hpcdeq.training.status import is_training_run, training_status

    if is_training_run(run):
        if html is not None:
            raise ConfigError(f"--html is a page about denoising, and {run} is a training run; leave it out")
        _look(lambda: _of_training(training_status(run)), watch=watch, as_json=as_json)
        return
    from hpcdeq.inference.status import Watch
    from hpcdeq.studies.bulk_page import BulkPage

    denoising = Watch(run)
    page = None if html is None else BulkPage(run, html)

    def look() -> _Look:
        now = denoising.look()
        if page is not None:
            page.write(now)
        return _Look(str(now), _as_text(now), _as_json_values(now), now.left == 0)

    _look(look, watch=watch, as_json=as_json)
    if html is not None:
        say(f"page: {html}")


@dataclass(frozen=True)
class _Look:
    line: str
    text: str
    values: dict[str, Any]
    finished: bool


def _of_training(now: TrainingStatus) -> _Look:
    from dataclasses import asdict

    values = asdict(now) | {"seconds_left": now.seconds_left}
    return _Look(str(now), str(now), values, now.finished)


def _look(look: Callable[[], _Look], *, watch: bool, as_json: bool) -> None:
    """Show what is seen, once, or until nothing is left to do."""
    import sys
    import time

    from hpcdeq.console import result, result_json

    in_place = watch and not as_json and sys.stdout.isatty()
    with _redrawing() if in_place else nullcontext(result) as show:
        while True:
            now = look()
            last = not watch or now.finished
            if as_json:
                result_json(now.values)
            elif last:
                show(now.text)
            else:
                show(f"{time.strftime('%H:%M:%S')} {now.text if in_place else now.line}")
            if last:
                break
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _redrawing() -> Iterator[Callable[[str], None]]:
    """Show texts on the terminal, each in place of the one before."""
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        yield lambda text: live.update(Text(text), refresh=True)


def _as_text(status: Status) -> str:
    from hpcdeq.console import table
    from hpcdeq.inference.status import LISTED

    parts = [str(status)]
    for concerns in status.concerns():
        parts += ["", f"{concerns.scenes} {concerns.title}:", table(concerns.columns, concerns.rows[:LISTED])]
        if (more := len(concerns.rows) - LISTED) > 0:
            parts.append(f"and {more} more (--json lists all)")
    return "\n".join(parts)


def _as_json_values(status: Status) -> dict[str, Any]:
    """What ``--json`` prints; its keys are documented in docs/denoising.md."""
    from dataclasses import asdict
    from math import isfinite

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        """JSON knows finite numbers only."""
        return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in values.items()}

    return {
        "states": status.states,
        "left": status.left,
        "units": status.units,
        "finished": status.finished,
        "tiles_left": status.tiles_left,
        "tiles_per_second": status.tiles_per_second,
        "pixels_per_second": status.pixels_per_second,
        "seconds_left": status.seconds_left,
        "scenes": [plain(asdict(scene)) for scene in status.scenes],
    }
