"""``hpcdeq split``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def split(
    archive: Annotated[
        Path | None, typer.Argument(metavar="ARCHIVE", help="Archive whose scenes are drawn.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write (JSON).")] = Path("split.json"),
    train: Annotated[Path | None, typer.Option(help="Archive of all scenes to learn from.")] = None,
    val: Annotated[
        str | None, typer.Option(help="How many scenes to validate on, or an archive of them.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="How many scenes to test on, or an archive of them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which scenes are drawn.")] = 0,
) -> None:
    """Say which scenes to learn from, validate on and test on.

    No scene may be in two of these. Scenes are known by their pixels and their raw files, not by their names. Drawn from one
    archive, or of several as they are. Used by data.split, evaluate --split and tables --split.
    """
    from hpcdeq.archive import open_archive
    from hpcdeq.archive.splits import Part, split_of, split_scenes, write_split
    from hpcdeq.console import result
    from hpcdeq.errors import ConfigError

    if (archive is None) == (train is None):
        raise ConfigError(
            "give one of ARCHIVE, to draw from it, and --train ARCHIVE, to take archives as they are"
        )
    if archive is not None:
        drawn = {"val": _count("val", val), "test": _count("test", test)}
        found = split_scenes(open_archive(archive).scenes(), seed=seed, **drawn)
    else:
        asked: dict[Part, str | None] = {"train": str(train), "val": val, "test": test}
        found = split_of({part: open_archive(Path(path)).scenes() for part, path in asked.items() if path})
    write_split(found, out)
    result(", ".join(f"{part}: {len(scenes)}" for part, scenes in found.parts.items()))


def _count(name: str, text: str | None) -> int:
    from hpcdeq.errors import ConfigError

    if text is not None and not text.isdecimal():
        raise ConfigError(f"--{name} must be a number of scenes to draw from ARCHIVE, got {text!r}")
    return int(text or 0)
