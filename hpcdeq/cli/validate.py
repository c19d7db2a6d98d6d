"""``hpcdeq validate``: every chunk of an archive checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def validate(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Folder of the archive.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Read all of an archive, and name what is damaged.

    Every chunk of every scene; damage is named by scene, rows and columns.
    """
    from dataclasses import asdict

    from hpcdeq.archive import open_archive
    from hpcdeq.archive.validate import validate as run
    from hpcdeq.console import progress, result, result_json
    from hpcdeq.errors import PartialFailureError

    opened = open_archive(archive)
    problems = []
    scenes = 0
    for name, found in progress(run(opened), len(opened), "validate"):
        scenes += 1
        problems += found
        if not as_json:
            result("\n".join(map(str, found)) or f"ok {name}")
    bad = sorted({p.scene for p in problems})
    if as_json:
        result_json({"scenes": scenes, "bad_scenes": bad, "problems": [asdict(p) for p in problems]})
    if bad:
        raise PartialFailureError(f"{len(bad)} of {scenes} scenes are damaged: {', '.join(bad)}")
