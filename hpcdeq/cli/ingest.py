"""``hpcdeq ingest``: raw files and folders into an archive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpcdeq.archive.ingest import Outcome


def ingest(
    raw: Annotated[
        list[Path],
        typer.Argument(metavar="RAW", help="Files and folders; folders are searched to the bottom."),
    ],
    archive: Annotated[Path, typer.Option(help="Folder of the archive; made if it does not exist.")],
    variable: Annotated[str | None, typer.Option(help="Array to take from files that hold several.")] = None,
    axes: Annotated[str | None, typer.Option(help="Order of the axes in the file, such as yxb.")] = None,
    scale: Annotated[float | None, typer.Option(help="The value that maps to 1.0.")] = None,
    skip_bands: Annotated[str, typer.Option(help="Bands to leave out, counted from 0, such as 0,5-7.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo scenes that are there already.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Scenes worked on at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Bring raw scenes into an archive.

    Known are folders of PNG bands, ENVI, MATLAB, HDF5, NetCDF4, GeoTIFF, .npy and .npz, told by their content.
    """
    from hpcdeq.archive.ingest import IngestOptions
    from hpcdeq.archive.ingest import ingest as run
    from hpcdeq.console import result, result_json, say
    from hpcdeq.errors import PartialFailureError

    def tell(outcome: Outcome) -> None:
        line = f"{outcome.status} {outcome.name}: {outcome.message}"
        (say if as_json or outcome.status == "failed" else result)(line)
        for text in outcome.notes:
            say(f"note: {outcome.name}: {text}")

    options = IngestOptions(variable=variable, axes=axes, scale=scale, skip_bands=_bands(skip_bands))
    outcomes = run(
        raw,
        archive,
        options,
        overwrite=overwrite,
        workers=workers,
        tell=tell,
        note=lambda text: say(f"note: {text}"),
    )
    if as_json:
        result_json({"scenes": [asdict(o) for o in outcomes]})
    failed = [o for o in outcomes if o.status == "failed"]
    count = {s: sum(o.status == s for o in outcomes) for s in ("ingested", "skipped", "failed")}
    say(", ".join(f"{n} {status}" for status, n in count.items()))
    if failed:
        for outcome in failed:
            say(f"  {outcome.name}: {outcome.message}")
        raise PartialFailureError(
            f"{len(failed)} of {len(outcomes)} scenes were not ingested; they are listed above"
        )


def _bands(text: str) -> tuple[int, ...]:
    """Parse ``0,5-7`` into (0, 5, 6, 7)."""
    from hpcdeq.errors import ConfigError

    bands: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        numbers = first.isdigit() and (last or first).isdigit()
        if not numbers or not int(first) <= int(last or first) < 1 << 14:
            raise ConfigError(
                f"--skip-bands takes band numbers from 0 and ranges of them, such as 0,5-7; got {text!r}"
            )
        bands.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(bands))
