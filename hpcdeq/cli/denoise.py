"""``hpcdeq denoise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def denoise(
    archive: Annotated[Path, typer.Argument(help="Archive of noisy scenes.")],
    model: Annotated[Path, typer.Option(help="Model folder, as train writes it.")],
    out: Annotated[Path, typer.Option(help="Archive to write.")],
    overlap: Annotated[
        int | None,
        typer.Option(help="Pixels shared by neighbouring tiles; 0 for none. [default: a third of a tile]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Tiles computed at once on a GPU.")] = 16,
    iterations: Annotated[
        int | None, typer.Option(help="Most solver iterations. [default: the model's]")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="Solver tolerance. [default: the model's]")] = None,
    precision: Annotated[
        str, typer.Option(help="float32 or bfloat16: what the prior computes in.")
    ] = "float32",
    codes: Annotated[
        bool, typer.Option("--codes", help="Also keep the sparse codes: supports and coefficients.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Denoise again what is there already.")
    ] = False,
) -> None:
    """Denoise every scene of an archive into another. The same command continues an interrupted run."""
    from hpcdeq.archive import open_archive
    from hpcdeq.console import say
    from hpcdeq.errors import PartialFailureError
    from hpcdeq.inference import DenoiseSettings, denoise_archive

    settings = DenoiseSettings(
        overlap=overlap,
        batch=batch,
        iterations=iterations,
        tolerance=tolerance,
        precision=precision,  # type: ignore[arg-type]  # checked there
        codes=codes,
        device=device,
    )
    report = denoise_archive(open_archive(archive), model, out, settings, overwrite=overwrite)
    solved = report.convergence
    say(
        f"{len(report.done)} scenes denoised, {len(report.skipped)} there already, {len(report.failed)} failed"
    )
    if solved.tiles:
        say(
            f"{solved.converged} of {solved.tiles} tiles converged, {solved.iterations / solved.tiles:.1f} iterations "
            f"a tile, worst residual {solved.worst_residual:.1e}"
        )
    if report.code_bytes:
        say(
            f"codes take {report.code_bytes / 1e6:.1f} MB: the pixels as float32 take "
            f"{report.pixel_bytes / report.code_bytes:.1f} times as much"
        )
    if report.failed:
        raise PartialFailureError("not denoised: " + ", ".join(report.failed))
