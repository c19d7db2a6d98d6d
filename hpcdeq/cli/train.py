"""``hpcdeq train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. data.train=scenes.zarr run=runs/a"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; see configs/.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Learn a model from an archive of clean scenes.

    The same command continues an interrupted run. Learns a dictionary, pre-trains the prior, then trains the whole model; the
    model file is RUN/model.
    """
    from hpcdeq.config import dump_yaml, load_train_config
    from hpcdeq.console import result

    resolved = load_train_config(config, overrides or [])
    if show:
        result(dump_yaml(resolved).rstrip())
        return
    from hpcdeq.training import train as run

    result(str(run(resolved)))
