"""``hpcdeq status``: how far a bulk run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def status(
    out: Annotated[Path, typer.Argument(help="Archive that denoise writes.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again every 10 s, until all is done.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Say how many scenes and units are done, what failed and why, and how long the rest will take."""
    import time
    from dataclasses import asdict

    from hpcdeq.console import result, result_json
    from hpcdeq.inference.status import status_of

    while True:
        now = status_of(out)
        if as_json:
            told = {
                "units": now.units,
                "finished": now.finished,
                "left": now.left,
                "pixels_per_second": now.pixels_per_second,
                "seconds_left": now.seconds_left,
            }
            result_json(told | {"scenes": [asdict(scene) for scene in now.scenes]})
        else:
            result(str(now))
            for scene in now.scenes:
                for what in (scene.reason, *scene.remarks):
                    if what:
                        result(f"{scene.name}: {what}")
        if not watch or now.left == 0:
            return
        time.sleep(10)
