"""``hpcdeq denoise``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hpcdeq.inference import DenoiseSettings


def shipped(model: Path | None) -> Path | None:
    """Return the folder of a model that comes with the package, if it is called by its name."""
    from hpcdeq.weights import find

    return None if model is None else find(model)


def shipped_names(incomplete: str) -> list[str]:
    """Complete the name of a model that comes with the package; the shell completes folders by itself."""
    from hpcdeq.weights import names

    return [name for name in names() if name.startswith(incomplete)]


# Of denoise and of submit denoise.
Noisy = Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of noisy scenes.")]
Model = Annotated[
    Path,
    typer.Option(
        help="Model folder, as train writes it; or du-fast, deq-fast, du-full or deq-full: trained for 31 bands.",
        callback=shipped,
        autocompletion=shipped_names,
    ),
]
Out = Annotated[Path, typer.Option(help="Archive to write.")]
Overlap = Annotated[
    int | None,
    typer.Option(help="Pixels shared by neighbouring tiles; 0 for none. [default: a third of a tile]"),
]
Batch = Annotated[
    int | None,
    typer.Option(help="Tiles computed at once on a GPU. [default: 16 of 60 x 60 pixels, more if smaller]"),
]
Iterations = Annotated[int | None, typer.Option(help="Most solver iterations. [default: the model's]")]
Tolerance = Annotated[float | None, typer.Option(help="Solver tolerance. [default: the model's]")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16: what the prior computes in.")]
Dtype = Annotated[
    str, typer.Option(help="float32, or input: the integers and the scale of an input that has them.")
]
Codes = Annotated[
    bool, typer.Option("--codes", help="Also keep the sparse codes: supports and coefficients.")
]
UnitMib = Annotated[
    int, typer.Option(help="Largest unit of work, as float32; `hpcdeq submit scale denoise` compares sizes.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Denoise again what is there already; leave it out to go on.")
]


def denoise(
    archive: Noisy,
    model: Model,
    out: Out,
    overlap: Overlap = None,
    batch: Batch = None,
    iterations: Iterations = None,
    tolerance: Tolerance = None,
    precision: Precision = "float32",
    dtype: Dtype = "float32",
    codes: Codes = False,
    device: Device = "auto",
    unit_mib: UnitMib = 256,
    overwrite: Overwrite = False,
) -> None:
    """Denoise every scene of an archive into another.

    The same command, without --overwrite, continues an interrupted run.
    """
    settings = settings_of(locals())
    from hpcdeq.archive import open_archive
    from hpcdeq.console import say
    from hpcdeq.errors import PartialFailureError
    from hpcdeq.inference import denoise_archive

    report = denoise_archive(open_archive(archive), model, out, settings, overwrite=overwrite)
    solved = report.convergence
    say(
        f"{len(report.done)} scenes denoised, {len(report.skipped)} there already, {len(report.failed)} failed"
    )
    if solved.tiles:
        converged = f"{solved.converged} of {solved.tiles} tiles converged, " if report.tolerance > 0 else ""
        say(
            f"{converged}{solved.iterations / solved.tiles:.1f} iterations a tile, worst residual {solved.worst_residual:.1e}"
        )
    if report.code_bytes:
        say(
            f"codes take {report.code_bytes / 1e6:.1f} MB: the pixels as float32 take "
            f"{report.pixel_bytes / report.code_bytes:.1f} times as much"
        )
    if report.failed:
        raise PartialFailureError("not denoised: " + ", ".join(report.failed))


def settings_of(options: Mapping[str, Any]) -> DenoiseSettings:
    """Return how a model is applied, of the options of a verb."""
    from dataclasses import fields

    from hpcdeq.inference import DenoiseSettings

    return DenoiseSettings(**{field.name: options[field.name] for field in fields(DenoiseSettings)})
