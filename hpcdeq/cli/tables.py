"""``hpcdeq tables`` and ``hpcdeq figures``: the paper's evaluation on one's own scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdeq.cli.denoise import shipped, shipped_names

Clean = Annotated[Path, typer.Option("--archive", help="Archive of clean scenes to test on.")]
StudyOut = Annotated[
    Path, typer.Option("--out", help="Folder of all results; the same command with it goes on.")
]
Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        help="Folder of a trained model, or the name of one that comes along; may be repeated.",
        callback=lambda models: [shipped(model) for model in models or []],
        autocompletion=shipped_names,
    ),
]
Sigmas = Annotated[str, typer.Option("--sigma", help="Noise levels on the scale of 0 to 255.")]
Seeds = Annotated[str, typer.Option("--seed", help="Seeds of the noise, such as 0,1,2.")]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Methods that need no training, by commas: noisy, omp, lasso, sunsal-tv, fast-tv, tdl, llrt; and beyond the "
        "paper, with the extra peers: fasthyde, hyres, bm4d, tv, wavelet. [default: those of the paper]"
    ),
]
Dictionary = Annotated[
    Path | None,
    typer.Option(help="Dictionary of the sparse-coding methods. [default: that of the first model]"),
]
ProtocolName = Annotated[
    str,
    typer.Option("--protocol", help="hpcdeq, paper (60 px blocks side by side) or qrnn3d (512 px centre)."),
]
SplitFile = Annotated[
    Path | None, typer.Option("--split", help="Split file: test on its test part only; see hpcdeq split.")
]
StudyDevice = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def tables(
    archive: Clean,
    out: StudyOut = Path("study"),
    model: Models = None,
    sigma: Sigmas = "30,50,70",
    seed: Seeds = "0",
    methods: Methods = None,
    dictionary: Dictionary = None,
    protocol: ProtocolName = "hpcdeq",
    split: SplitFile = None,
    device: StudyDevice = "auto",
    runtime: Annotated[
        bool, typer.Option("--runtime", help="Also time the models on a scene of 1300 x 1300 (Table III).")
    ] = False,
) -> None:
    """Compare methods as the paper's Tables I to III do.

    PSNR, SSIM, SAM and ERGAS by method and noise level. Writes tables.txt, .csv, .json, .tex and report.html. A cell that is
    known is not computed again.
    """
    from hpcdeq.console import result
    from hpcdeq.studies.page import require_libraries
    from hpcdeq.studies.study import Study
    from hpcdeq.studies.tables import as_text

    require_libraries("the report", "matplotlib", "jinja2")
    study = Study(request_of(locals()))
    try:
        study.compute(study.comparison.cells(), "tables")
    finally:  # what is known is shown, if not all could be computed too
        found = study.write(runtimes=runtime)
    result(as_text(found))


def figures(
    archive: Clean,
    out: StudyOut = Path("study"),
    model: Models = None,
    sigma: Sigmas = "30,50,70",
    seed: Seeds = "0",
    methods: Methods = None,
    dictionary: Dictionary = None,
    protocol: ProtocolName = "hpcdeq",
    split: SplitFile = None,
    device: StudyDevice = "auto",
) -> None:
    """Draw the paper's Figures 6 to 8, spectra and error maps.

    As PNG and SVG, at the noise level nearest to 50. With the same folder as tables the report shows both.
    """
    from hpcdeq.console import result
    from hpcdeq.studies.page import require_libraries
    from hpcdeq.studies.study import Study

    require_libraries("figures", "matplotlib", "jinja2")
    study = Study(request_of(locals()))
    try:
        study.compute([*study.figure_cells(), *study.shown()], "figures")
    finally:
        study.write(runtimes=False)
    result("\n".join(str(path) for path in sorted((out / "figures").iterdir())))


def request_of(options: dict[str, Any]) -> Any:
    """What a verb's options ask for."""
    from hpcdeq.cli.evaluate import levels
    from hpcdeq.errors import ConfigError
    from hpcdeq.studies.study import StudyRequest

    seeds = options["seed"].split(",")
    if not all(text.strip().isdecimal() for text in seeds):
        raise ConfigError(f"--seed must be whole numbers such as 0,1,2; got {options['seed']!r}")
    names = options["methods"]

    def path(name: str) -> str | None:
        return None if options[name] is None else str(options[name])

    return StudyRequest(
        archive=str(options["archive"]),
        out=str(options["out"]),
        sigmas=tuple(levels(options["sigma"])),
        seeds=tuple(int(text) for text in seeds),
        methods=None if names is None else tuple(name.strip() for name in names.split(",")),
        models=tuple(str(folder) for folder in options["model"] or ()),
        dictionary=path("dictionary"),
        protocol=options["protocol"],
        split=path("split"),
        device=options["device"],
    )
