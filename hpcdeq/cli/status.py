"""``hpcdeq status``: how far a bulk run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hpcdeq.inference.status import Status

_LOOK_SECONDS = 10.0


def status(
    out: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive that denoise writes.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 10 s, until nothing is left to do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page: the archive as a grid, pictures before and after.")
    ] = None,
) -> None:
    """Say how far denoising is, and which scenes need a look.

    Counts scenes and units, and tells how long the rest will take.
    """
    import sys
    import time

    from hpcdeq.console import result, result_json, say
    from hpcdeq.inference.status import Watch
    from hpcdeq.studies.bulk_page import BulkPage

    run = Watch(out)
    page = None if html is None else BulkPage(out, html)
    in_place = watch and not as_json and sys.stdout.isatty()
    with _redrawing() if in_place else nullcontext(result) as show:
        while True:
            now = run.look()
            if page is not None:
                page.write(now)
            last = not watch or now.left == 0
            if as_json:
                result_json(_as_json_values(now))
            elif last:
                show(_as_text(now))
            else:
                show(f"{time.strftime('%H:%M:%S')} {_as_text(now) if in_place else now}")
            if last:
                break
            time.sleep(_LOOK_SECONDS)
    if html is not None:
        say(f"page: {html}")


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
