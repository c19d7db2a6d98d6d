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
        left = now.seconds_left
        if as_json:
            told = {"units": now.units, "finished": now.finished, "units_per_second": now.units_per_second}
            result_json(told | {"seconds_left": left, "scenes": [asdict(scene) for scene in now.scenes]})
        else:
            counts = ", ".join(f"{now.count(s)} {s}" for s in ("done", "running", "pending", "failed"))
            eta = "unknown" if left is None else f"{left / 60:.0f} min"
            result(f"{len(now.scenes)} scenes: {counts}; {now.finished} of {now.units} units, {eta} left")
            for scene in now.scenes:
                if scene.state == "failed":
                    result(f"{scene.name}: {scene.reason}")
        if not watch or left == 0:
            return
        time.sleep(10)
