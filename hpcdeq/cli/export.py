"""``hpcdeq export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run, finished or not.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Name of a checkpoint. [default: the best so far]")
    ] = None,
) -> None:
    """Write a checkpoint of a training run as a model file."""
    from hpcdeq.console import result, say
    from hpcdeq.training import export_checkpoint

    name = export_checkpoint(run, out, checkpoint)
    say(f"model of checkpoint {name}")
    result(str(out))
