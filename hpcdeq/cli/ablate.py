"""``hpcdeq ablate``: what each choice of a recipe does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="YAML file of the runs; see configs/studies/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of all runs, e.g. data.train=scenes.zarr"),
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Archive of clean scenes to score on. [default: data.val]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs; the same command with it goes on.")] = Path(
        "ablation"
    ),
    sigma: Annotated[
        str, typer.Option(help="Noise levels to score at, on the scale of 0 to 255.")
    ] = "30,50,70",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise that is scored on.")] = 0,
    only: Annotated[
        str | None,
        typer.Option(help="Names of runs, by commas: several commands may share the runs of a study."),
    ] = None,
) -> None:
    """Train the runs of a study, and say what each choice does.

    All runs are scored on the same scenes. A run that is done is not done again, and one that was interrupted goes on. Writes
    ablation.txt, .md and .csv.
    """
    from hpcdeq.archive import open_archive
    from hpcdeq.cli.evaluate import levels
    from hpcdeq.console import result
    from hpcdeq.errors import ConfigError
    from hpcdeq.studies.ablation import (
        Scoring,
        as_csv,
        as_markdown,
        as_text,
        carry_out,
        chosen,
        outcomes,
        read_study,
    )
    from hpcdeq.studies.page import write_whole

    about, runs = read_study(study, out, overrides or [])
    scored_on = archive or runs[0].config.data.val
    if scored_on is None:
        raise ConfigError("say which clean scenes to score on: --archive ARCHIVE, or data.val=ARCHIVE")
    scoring = Scoring(open_archive(scored_on), levels(sigma), seed)
    names = [] if only is None else [name.strip() for name in only.split(",")]
    try:
        carry_out(chosen(runs, names), scoring)
    finally:  # what is known is shown, if not all could be done too
        found = outcomes(runs, scoring)
        for kind, text in (
            ("txt", as_text(about, found, scoring.sigmas)),
            ("md", as_markdown(about, found, scoring.sigmas)),
            ("csv", as_csv(found).rstrip()),
        ):
            write_whole(out / f"ablation.{kind}", f"{text}\n".encode())
    result(as_text(about, found, scoring.sigmas))
