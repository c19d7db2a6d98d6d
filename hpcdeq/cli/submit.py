"""``hpcdeq submit``: verbs as jobs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hpcdeq.cli.denoise import (
    Batch,
    Codes,
    Device,
    Dtype,
    Iterations,
    Model,
    Noisy,
    Out,
    Overlap,
    Overwrite,
    Precision,
    Tolerance,
    UnitMib,
    settings_of,
)
from hpcdeq.cli.examples import examples
from hpcdeq.cli.job_options import Cluster, JobOptions, job_request_of, with_job_options
from hpcdeq.cli.submit_scale import scale
from hpcdeq.cli.tables import (
    Clean,
    Dictionary,
    Methods,
    Models,
    ProtocolName,
    Seeds,
    Sigmas,
    SplitFile,
    StudyDevice,
    StudyOut,
)

submit = typer.Typer(
    name="submit",
    help="Run a verb as a job, on a SLURM cluster or on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
submit.add_typer(scale)


@submit.command(epilog=examples("submit train"))
@with_job_options()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. data.train=scenes.zarr run=runs/a"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; see configs/.")] = None,
    *,
    job: JobOptions,
) -> None:
    """Train as a job.

    On SLURM it is queued again at its time limit, and goes on, until it is finished. Prints the job's number (slurm) and
    returns, or waits and prints the model's folder (local, debug).
    """
    request = job_request_of("train", job)
    from hpcdeq.cluster.local import run_local
    from hpcdeq.cluster.submission import sbatch_text
    from hpcdeq.cluster.submission import submit as submit_job
    from hpcdeq.config import load_train_config
    from hpcdeq.console import result, say

    resolved = load_train_config(config, overrides or [])
    folder = resolved.run / "jobs"
    if job.dry_run:
        result(sbatch_text(request, folder).rstrip())
        return
    from hpcdeq.training.job import train_job
    from hpcdeq.training.start import check_before

    if "dependency" not in request.slurm:  # else what it names may be made by the job before
        check_before(resolved, request.nodes * request.tasks)
    plain = resolved.model_dump(mode="json")
    if job.cluster == Cluster.DEBUG:
        result(train_job(plain))
    elif job.cluster == Cluster.LOCAL:
        result(run_local(request, folder, train_job, plain))
    else:
        sent = submit_job(request, folder, train_job, plain)
        say(
            f"job {sent.id} is in the queue; it was given {sent.script}; rank 0 says what it does in {sent.log}"
        )
        result(sent.id)


@submit.command(epilog=examples("submit denoise"))
@with_job_options()
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
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Nodes that work at a time. [default: all]")
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for the end, and submit again what SLURM has lost."),
    ] = False,
    *,
    job: JobOptions,
) -> None:
    """Denoise an archive as jobs, one a node.

    They need not run at the same time. Each is queued again by itself at its time limit, and goes on. Prints the number of the
    jobs (slurm; several if the site bounds arrays) and returns, or waits and prints the archive (local, debug, --wait). The
    same command, without --overwrite, continues what was ended.
    """
    request = job_request_of("denoise", job)
    settings = settings_of(locals())
    from hpcdeq.archive import open_archive
    from hpcdeq.cluster.device import choose_device
    from hpcdeq.cluster.local import check_local, run_local
    from hpcdeq.cluster.submission import sbatch_text
    from hpcdeq.console import result, say
    from hpcdeq.errors import PartialFailureError
    from hpcdeq.inference import plan_archive
    from hpcdeq.inference.job import check_workers, denoise_job, jobs_folder, see_through, submit_workers

    folder = jobs_folder(out)
    if job.dry_run:
        result(sbatch_text(request, folder, parallel=max_parallel or request.nodes).rstrip())
        return
    if job.cluster == Cluster.SLURM:
        check_workers(request, out, max_parallel)
    else:
        choose_device(device)
    if job.cluster == Cluster.LOCAL:
        check_local(request, folder)
    source = open_archive(archive)
    failed = plan_archive(source, model, out, settings, overwrite=overwrite)
    if failed.keys() == set(source.names()):
        raise PartialFailureError(f"no scene of {archive} can be denoised, and no job was begun")
    if job.cluster == Cluster.DEBUG:
        result(denoise_job(str(out), 0, 1))
    elif job.cluster == Cluster.LOCAL:
        result(run_local(request, folder, denoise_job, str(out), 0, 1))
    else:
        jobs = submit_workers(request, out, max_parallel)
        arrays = list(dict.fromkeys(job.id.partition("_")[0] for job in jobs))
        say(f"{len(jobs)} jobs are in the queue, of {', '.join(arrays)}; their logs: {folder}")
        if wait:
            see_through(request, out, max_parallel)
        result(str(out) if wait else "\n".join(arrays))


@submit.command(epilog=examples("submit tables"))
@with_job_options()
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
    *,
    job: JobOptions,
) -> None:
    """Compute the cells of tables and figures as jobs, one a node.

    Jobs share the cells. `hpcdeq tables` and `hpcdeq figures` with the same options then put together what is known, at any time.
    """
    asked = job_request_of("tables", job)
    from hpcdeq.cli.tables import request_of
    from hpcdeq.cluster.local import check_local, run_local
    from hpcdeq.cluster.slurm import check_not_queued
    from hpcdeq.cluster.submission import check_each, sbatch_text
    from hpcdeq.console import result, say
    from hpcdeq.studies.study import Study, study_job, submit_study

    request = request_of(locals())
    folder = out / "jobs"
    if job.dry_run:
        result(sbatch_text(asked, folder, parallel=asked.nodes).rstrip())
        return
    if job.cluster == Cluster.SLURM:
        check_each(asked, folder, parallel=asked.nodes)
        check_not_queued(folder, out, can_follow=False)
    elif job.cluster == Cluster.LOCAL:
        check_local(asked, folder)
    Study(request)  # what cannot work is said here, not in a log
    if job.cluster == Cluster.DEBUG:
        result(study_job(asdict(request), 0, 1))
    elif job.cluster == Cluster.LOCAL:
        result(run_local(asked, folder, study_job, asdict(request), 0, 1))
    else:
        jobs = submit_study(asked, request)
        arrays = list(dict.fromkeys(job.id.partition("_")[0] for job in jobs))
        say(f"{len(jobs)} jobs are in the queue, of {', '.join(arrays)}; their logs: {folder}")
        result("\n".join(arrays))
