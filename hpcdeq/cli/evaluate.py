"""``hpcdeq evaluate``: how good denoised scenes, or a model, are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdeq.cli.denoise import Iterations, Overlap, Tolerance, shipped, shipped_names


def evaluate(
    clean: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of clean scenes.")],
    denoised: Annotated[
        Path | None, typer.Option(help="Archive of denoised scenes of the same names.")
    ] = None,
    noisy: Annotated[
        Path | None, typer.Option(help="Archive they were denoised from, to score it too.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder, or the name of one that comes along: add noise, denoise, score.",
            callback=shipped,
            autocompletion=shipped_names,
        ),
    ] = None,
    sigma: Annotated[
        str, typer.Option(help="Noise levels on the scale of 0 to 255, with --model.")
    ] = "30,50,70",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise, with --model.")] = 0,
    overlap: Overlap = None,
    iterations: Iterations = None,
    tolerance: Tolerance = None,
    split: Annotated[
        Path | None, typer.Option(help="Split file: score its test part only; see hpcdeq split.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report page with pictures and spectra.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Score denoised scenes, or a model, against clean scenes.

    PSNR, SSIM, SAM and ERGAS, of each scene and in the mean. --overlap,
    --iterations and --tolerance say how --model is applied, as for denoise.
    """
    from hpcdeq.archive import open_archive
    from hpcdeq.archive.splits import check_unseen, read_split
    from hpcdeq.console import result, result_json, say
    from hpcdeq.errors import ConfigError, PartialFailureError
    from hpcdeq.inference import DenoiseSettings
    from hpcdeq.models import learnt_scenes, load_model, read_card
    from hpcdeq.studies.evaluation import as_json_values, as_table, compare_archives, compare_model
    from hpcdeq.studies.page import check_page, write_page
    from hpcdeq.studies.report import gather, render, require_libraries

    if (denoised is None) == (model is None):
        raise ConfigError(
            "give one of --denoised ARCHIVE (scenes denoised before) and --model MODEL (add noise here)"
        )
    if noisy is not None and model is not None:
        raise ConfigError("--noisy goes with --denoised; with --model the noise is added here, see --sigma")
    applied = {"overlap": overlap, "iterations": iterations, "tolerance": tolerance}
    given = {name: value for name, value in applied.items() if value is not None}
    if given and model is None:
        raise ConfigError(f"--{min(given)} says how --model is applied; --denoised was denoised before")
    if html is not None:
        require_libraries()
        check_page(html)
    archive = open_archive(clean)
    names = archive.names() if split is None else read_split(split).names(archive, "test")
    settings: dict[str, Any] = {"clean": str(clean)}
    if model is not None:
        sigmas = levels(sigma)
        settings |= {"model": str(model), "sigma": sigmas, "seed": seed, **given}
        check_unseen(
            archive.readable(names), learnt_scenes(read_card(model)["provenance"]), f"the model {model}"
        )
        how = DenoiseSettings(overlap=overlap, iterations=iterations, tolerance=tolerance)
        compared = compare_model(archive, load_model(model), sigmas, seed, how, names)
        total = len(names) * len(sigmas)
    else:
        assert denoised is not None
        settings |= {"denoised": str(denoised), "noisy": None if noisy is None else str(noisy)}
        before = None if noisy is None else open_archive(noisy)
        compared = compare_archives(archive, open_archive(denoised), before, names)
        total = len(names)
    results = gather(compared, total, pictures=html is not None)
    if as_json:
        result_json(as_json_values(results.rows, results.failures, settings))
    elif results.rows:
        result(as_table(results.rows))
    if html is not None:
        write_page(html, render(results, settings, f"Evaluation of {clean.name}"))
        say(f"report: {html}")
    if results.failures:
        raise PartialFailureError(
            f"{len(results.failures)} of {len(names)} scenes were not scored; they are listed above"
        )


def levels(text: str) -> list[float]:
    """Parse noise levels such as ``30,50,70``."""
    from hpcdeq.errors import ConfigError

    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level <= 1000 for level in levels):
        raise ConfigError(
            f"--sigma must be noise levels above 0 on the scale of 0 to 255, such as 30,50,70; got {text!r}"
        )
    return levels
