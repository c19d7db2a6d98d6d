"""``hpcdeq submit scale``: measure how training and bulk denoising scale, a job for each point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcdeq.cli.denoise import (
    Batch,
    Device,
    Iterations,
    Model,
    Noisy,
    Overlap,
    Precision,
    Tolerance,
    settings_of,
)
from hpcdeq.cli.examples import examples
from hpcdeq.cli.job_options import Cluster, JobOptions, job_request_of, with_job_options

scale = typer.Typer(
    name="scale",
    help="Measure how a verb scales, a job for each point.",
    no_args_is_help=True,
)

_Out = Annotated[Path, typer.Option("--out", help="Folder of the study; the same command with it goes on.")]
_Sizes = Annotated[
    str, typer.Option(help="Nodes x processes on each, by commas. With --gpus-per-node each has a GPU.")
]
_Modes = Annotated[
    str, typer.Option(help="strong: the same load for all sizes; weak: the same for each process.")
]
_Repeats = Annotated[int, typer.Option(help="Repeats that count.")]
_Warmup = Annotated[int, typer.Option(help="Repeats before them.")]
_DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the points, their node-hours and what sbatch would be given; write nothing."
    ),
]


@scale.command(epilog=examples("submit scale train"))
@with_job_options("nodes", "tasks_per_node", dry_run=_DryRun)
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. data.train=scenes.zarr data.batch=16"),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="YAML file with settings; several are compared.")
    ] = None,
    out: _Out = Path("scaling"),
    sizes: _Sizes = "1x1,2x1",
    modes: _Modes = "strong,weak",
    engines: Annotated[str, typer.Option(help="ddp, zero0, zero1, zero2, zero3, by commas.")] = "ddp",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B", help="A setting with several values, e.g. model.block=40,60; may be repeated."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of a repeat.")] = 5,
    repeats: _Repeats = 5,
    warmup: _Warmup = 1,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write a trace of one step of each point, for Perfetto.")
    ] = False,
    *,
    job: JobOptions,
) -> None:
    """Measure steps of training.

    Of every size, setting and engine. Weights stay as they are: begin from a trained model (training.start_from=MODEL) for the
    iterations that it needs. With debug the points of their number are measured by the processes that run this command, e.g.
    under mpirun.
    """
    from hpcdeq.studies.scaling.points import Effort, modes_of, sizes_of, train_points

    points = train_points(
        config or [],
        overrides or [],
        [name.strip() for name in engines.split(",")],
        vary or [],
        sizes_of(sizes),
        modes_of(modes),
        Effort(warmup=warmup, repeats=repeats, steps=steps),
    )
    _measure(job, out, points, trace)


@scale.command(epilog=examples("submit scale denoise"))
@with_job_options("nodes", "tasks_per_node", dry_run=_DryRun)
def denoise(
    archive: Noisy,
    model: Model,
    out: _Out = Path("scaling"),
    sizes: _Sizes = "1x1,2x1",
    modes: _Modes = "strong,weak",
    scenes: Annotated[
        int | None,
        typer.Option(min=1, help="Scenes that may be used; strong scaling uses all of them. [default: all]"),
    ] = None,
    scenes_per_process: Annotated[
        int, typer.Option(min=1, help="Scenes of each process in weak scaling.")
    ] = 2,
    unit_sizes: Annotated[
        str, typer.Option("--unit-mib", help="Largest size of a unit of work in MiB; several by commas.")
    ] = "256",
    storage: Annotated[
        list[Path] | None,
        typer.Option(help="Folder to write into, to compare file systems; may be repeated. [default: --out]"),
    ] = None,
    overlap: Overlap = None,
    batch: Batch = None,
    iterations: Iterations = None,
    tolerance: Tolerance = None,
    precision: Precision = "float32",
    device: Device = "auto",
    repeats: _Repeats = 3,
    warmup: _Warmup = 1,
    *,
    job: JobOptions,
) -> None:
    """Measure bulk denoising of an archive.

    Passes of its workers over scenes, into a folder that is removed again. Strong scaling denoises all scenes with every size,
    weak scaling as many for each process.
    """
    settings = settings_of({**locals(), "dtype": "float32", "codes": False, "unit_mib": 256})
    from dataclasses import asdict, replace

    from hpcdeq.archive import open_archive
    from hpcdeq.errors import ConfigError
    from hpcdeq.models.files import read_card
    from hpcdeq.studies.scaling.points import Effort, denoise_points, modes_of, sizes_of

    weights = read_card(model)["weights_sha256"]
    names = open_archive(archive).names()[:scenes]
    points = []
    for text in unit_sizes.split(","):
        if not text.strip().isdecimal():
            raise ConfigError(f"--unit-mib must be whole numbers of MiB such as 64,256; got {unit_sizes!r}")
        for folder in storage or (None,):
            what = {
                "archive": str(archive.absolute()),
                "model": str(model.absolute()),
                "weights": weights,
                "settings": asdict(replace(settings, unit_mib=int(text))),
                "storage": None if folder is None else str(folder.absolute()),
            }
            title = ", ".join(
                [model.parent.name if model.name == "model" else model.name, f"units of {int(text)} MiB"]
            )
            title += "" if folder is None else f", {folder}"
            points += denoise_points(
                what,
                title,
                names,
                sizes_of(sizes),
                modes_of(modes),
                Effort(warmup=warmup, repeats=repeats),
                scenes_per_process,
            )
    _measure(job, out, points, trace=False)


def _measure(options: JobOptions, out: Path, points: list[Any], trace: bool) -> None:
    """Note the points, and measure those that are not, as the options say."""
    import os
    import shlex
    from dataclasses import replace

    from hpcdeq.cluster.local import check_local
    from hpcdeq.cluster.ranks import place_of
    from hpcdeq.cluster.slurm import check_slurm_is_here
    from hpcdeq.cluster.submission import sbatch_text
    from hpcdeq.console import result, say
    from hpcdeq.studies.scaling.study import (
        Study,
        check_storage,
        measure,
        request_of,
        run_points,
        submit_points,
    )

    request = job_request_of("scale", options)
    cluster, study = options.cluster, Study(out)
    # What was measured elsewhere is another point.
    where = {
        "cluster": str(cluster),
        "gpus": bool(request.gpus_per_node),
        **{name: getattr(request, name) for name in ("cpus_per_task", "partition", "constraint")},
    }
    points = [replace(point, where=where) for point in points]
    for point in points:
        request_of(point, request)
        check_storage(point)
    missing = [point for point in points if study.result(point) is None]
    if options.dry_run:
        _show(study, len(points) - len(missing), missing, request)
        return
    command = shlex.join(["hpcdeq", *sys.argv[1:]])
    if cluster == Cluster.LOCAL:
        for point in missing:
            check_local(request_of(point, request), study.jobs(point))
    if cluster == Cluster.SLURM and missing:
        # What is wrong with it is said first.
        sbatch_text(request_of(missing[0], request), study.jobs(missing[0]))
        check_slurm_is_here()
    for point in points:
        study.add(point, command)
    say(f"{len(points) - len(missing)} points are measured already, {len(missing)} are to be measured")
    if cluster == Cluster.SLURM:
        jobs = submit_points(study, points, request, trace)
        say(f"{len(jobs)} jobs are in the queue, to run one after the other; then: hpcdeq scale {out}")
        result("\n".join(job.id for job in jobs))
    elif cluster == Cluster.LOCAL:
        run_points(study, points, request, trace)
        result(str(out))
    else:
        world = place_of(os.environ).world_size
        for point in missing:
            if point.nodes * point.tasks != world:
                say(f"left out, as this is {world} process(es): {point}")
        measure(out, [point.name for point in missing if point.nodes * point.tasks == world], trace)
        result(str(out))


def _show(study: Any, measured: int, missing: list[Any], request: Any) -> None:
    """Print what is to be measured, what it costs, and what sbatch would be given for the first."""
    from hpcdeq.cluster.submission import sbatch_text
    from hpcdeq.console import result, table
    from hpcdeq.studies.scaling.study import node_hours, request_of

    known = study.results()
    hours = [(point, *node_hours(known, point, request)) for point in missing]
    rows = [
        [str(point), f"{cost:.3g}", "like its neighbour" if near else "at most, by --time"]
        for point, cost, near in hours
    ]
    result(table(["point", "node-hours", ""], rows))
    total = sum(cost for _, cost, _ in hours)
    result(f"{measured} points are measured, {len(missing)} are not: {total:.3g} node-hours")
    if missing:
        first = missing[0]
        result(f"\nWhat sbatch would be given for {first}:\n")
        result(sbatch_text(request_of(first, request), study.jobs(first)).rstrip())
