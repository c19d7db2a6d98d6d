"""``hpcdeq submit``: verbs as jobs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
    settings_of,
)
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


class Cluster(StrEnum):
    """Where a job runs."""

    SLURM = "slurm"
    LOCAL = "local"
    DEBUG = "debug"


submit = typer.Typer(
    name="submit",
    help="Run a verb as a job: on a SLURM cluster, or as processes of this machine.",
    no_args_is_help=True,
)


# What every verb's job may ask for.
_ASKED = (
    *("nodes", "gpus-per-node", "tasks-per-node", "cpus-per-task", "mem", "time", "partition", "account"),
    *("qos", "constraint", "job-name", "signal-seconds"),
)
_Cluster = Annotated[
    Cluster, typer.Option(help="slurm; local: processes of this machine, waited for; debug: in this process.")
]
_Profile = Annotated[
    str | None,
    typer.Option(
        help="YAML file with these options, or the name of one in slurm/profiles/; the command line wins."
    ),
]
_Nodes = Annotated[int | None, typer.Option(help="Nodes. (default: 1)")]
_GpusPerNode = Annotated[int | None, typer.Option(help="GPUs of each node. (default: 0)")]
_TasksPerNode = Annotated[
    int | None, typer.Option(help="Processes on each node. (default: one a GPU, or one)")
]
_CpusPerTask = Annotated[int | None, typer.Option(help="Cores, and threads, of each process.")]
_Mem = Annotated[str | None, typer.Option(help="Memory of each node, e.g. 64G.")]
_Time = Annotated[
    str | None,
    typer.Option(help="Longest time of one attempt: minutes, H:MM:SS or D-HH. Needed for slurm."),
]
_Partition = Annotated[str | None, typer.Option(help="Partition to queue in.")]
_Account = Annotated[str | None, typer.Option(help="Account that pays.")]
_Qos = Annotated[str | None, typer.Option(help="Quality of service.")]
_Constraint = Annotated[str | None, typer.Option(help="Features of the nodes, e.g. 'a100|h100'.")]
_JobName = Annotated[str | None, typer.Option(help="Name in the queue. (default: hpcdeq-VERB)")]
_SignalSeconds = Annotated[
    int | None,
    typer.Option(help="How long before its end an attempt is told to stop. (default: 120)"),
]
_Slurm = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY[=VALUE]", help="Another option of sbatch, e.g. exclude=n3; may be repeated."),
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what sbatch would be given, and write nothing.")
]


@submit.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. data.train=scenes.zarr run=runs/a"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; see configs/.")] = None,
    cluster: _Cluster = Cluster.SLURM,
    profile: _Profile = None,
    nodes: _Nodes = None,
    gpus_per_node: _GpusPerNode = None,
    tasks_per_node: _TasksPerNode = None,
    cpus_per_task: _CpusPerTask = None,
    mem: _Mem = None,
    time: _Time = None,
    partition: _Partition = None,
    account: _Account = None,
    qos: _Qos = None,
    constraint: _Constraint = None,
    job_name: _JobName = None,
    signal_seconds: _SignalSeconds = None,
    slurm: _Slurm = None,
    dry_run: _DryRun = False,
) -> None:
    """Train as a job. On SLURM it is queued again at its time limit, and goes on, until it is finished.

    Prints the job's number (slurm) and returns, or waits and prints the model's folder (local, debug).
    """
    request = _request("train", locals())
    from hpcdeq.cluster.submission import run_local, sbatch_text
    from hpcdeq.cluster.submission import submit as submit_job
    from hpcdeq.config import load_train_config
    from hpcdeq.console import result, say

    resolved = load_train_config(config, overrides or [])
    folder = resolved.run / "jobs"
    if dry_run:
        result(sbatch_text(request, folder).rstrip())
        return
    from hpcdeq.training.job import train_job
    from hpcdeq.training.start import check_batch_norm

    check_batch_norm(resolved, request.nodes * request.tasks)
    plain = resolved.model_dump(mode="json")
    if cluster == Cluster.DEBUG:
        result(train_job(plain))
    elif cluster == Cluster.LOCAL:
        result(run_local(request, folder, train_job, plain))
    else:
        job = submit_job(request, folder, train_job, plain)
        say(f"job {job.id} is in the queue; it was given {job.script}; rank 0 says what it does in {job.log}")
        result(job.id)


@submit.command()
def denoise(
    archive: Noisy,
    model: Model,
    out: Out,
    overlap: Overlap = None,
    batch: Batch = 16,
    iterations: Iterations = None,
    tolerance: Tolerance = None,
    precision: Precision = "float32",
    dtype: Dtype = "float32",
    codes: Codes = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    cluster: _Cluster = Cluster.SLURM,
    profile: _Profile = None,
    nodes: _Nodes = None,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Nodes that work at a time. [default: all]")
    ] = None,
    gpus_per_node: _GpusPerNode = None,
    tasks_per_node: _TasksPerNode = None,
    cpus_per_task: _CpusPerTask = None,
    mem: _Mem = None,
    time: _Time = None,
    partition: _Partition = None,
    account: _Account = None,
    qos: _Qos = None,
    constraint: _Constraint = None,
    job_name: _JobName = None,
    signal_seconds: _SignalSeconds = None,
    slurm: _Slurm = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait for the end, and submit again what SLURM has lost."),
    ] = False,
    dry_run: _DryRun = False,
) -> None:
    """Denoise an archive as jobs, one a node, which need not run at the same time.

    Each is queued again by itself at its time limit, and goes on. Prints the number of the jobs (slurm; several if the site bounds
    arrays) and returns, or waits and prints the archive (local, debug, --wait). The same command, without --overwrite, continues
    what was ended.
    """
    request = _request("denoise", locals())
    settings = settings_of(locals())
    from hpcdeq.archive import open_archive
    from hpcdeq.cluster.device import choose_device
    from hpcdeq.cluster.submission import check_local, run_local, sbatch_text
    from hpcdeq.console import result, say
    from hpcdeq.inference import plan_archive
    from hpcdeq.inference.job import check_workers, denoise_job, jobs_folder, see_through, submit_workers

    folder = jobs_folder(out)
    if dry_run:
        result(sbatch_text(request, folder, parallel=max_parallel or request.nodes).rstrip())
        return
    if cluster == Cluster.SLURM:
        check_workers(request, out, max_parallel)
    else:
        choose_device(device)
    if cluster == Cluster.LOCAL:
        check_local(request, folder)
    plan_archive(open_archive(archive), model, out, settings, overwrite=overwrite)
    if cluster == Cluster.DEBUG:
        result(denoise_job(str(out), 0, 1))
    elif cluster == Cluster.LOCAL:
        result(run_local(request, folder, denoise_job, str(out), 0, 1))
    else:
        jobs = submit_workers(request, out, max_parallel)
        arrays = list(dict.fromkeys(job.id.partition("_")[0] for job in jobs))
        say(f"{len(jobs)} jobs are in the queue, of {', '.join(arrays)}; their logs: {folder}")
        if wait:
            see_through(request, out, max_parallel)
        result(str(out) if wait else "\n".join(arrays))


@submit.command()
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
    cluster: _Cluster = Cluster.SLURM,
    profile: _Profile = None,
    nodes: _Nodes = None,
    gpus_per_node: _GpusPerNode = None,
    tasks_per_node: _TasksPerNode = None,
    cpus_per_task: _CpusPerTask = None,
    mem: _Mem = None,
    time: _Time = None,
    partition: _Partition = None,
    account: _Account = None,
    qos: _Qos = None,
    constraint: _Constraint = None,
    job_name: _JobName = None,
    signal_seconds: _SignalSeconds = None,
    slurm: _Slurm = None,
    dry_run: _DryRun = False,
) -> None:
    """Compute the cells of `hpcdeq tables` and `hpcdeq figures` as jobs, one a node, which share them.

    Those two verbs with the same options then put together what is known, at any time.
    """
    asked = _request("tables", locals())
    from hpcdeq.cli.tables import request_of
    from hpcdeq.cluster.submission import check_each, check_local, check_not_queued, run_local, sbatch_text
    from hpcdeq.console import result, say
    from hpcdeq.studies.study import Study, study_job, submit_study

    request = request_of(locals())
    folder = out / "jobs"
    if dry_run:
        result(sbatch_text(asked, folder, parallel=asked.nodes).rstrip())
        return
    if cluster == Cluster.SLURM:
        check_each(asked, folder, parallel=asked.nodes)
        check_not_queued(folder, out, can_follow=False)
    elif cluster == Cluster.LOCAL:
        check_local(asked, folder)
    Study(request)  # what cannot work is said here, not in a log
    if cluster == Cluster.DEBUG:
        result(study_job(asdict(request), 0, 1))
    elif cluster == Cluster.LOCAL:
        result(run_local(asked, folder, study_job, asdict(request), 0, 1))
    else:
        jobs = submit_study(asked, request)
        arrays = list(dict.fromkeys(job.id.partition("_")[0] for job in jobs))
        say(f"{len(jobs)} jobs are in the queue, of {', '.join(arrays)}; their logs: {folder}")
        result("\n".join(arrays))


def _request(verb: str, options: dict[str, Any]) -> Any:
    """What a verb's options ask of the cluster."""
    from dataclasses import replace

    from hpcdeq.cluster.request import job_request, slurm_options
    from hpcdeq.errors import ConfigError

    if options["dry_run"] and options["cluster"] != Cluster.SLURM:
        raise ConfigError(
            f"--dry-run shows what sbatch would be given; --cluster {options['cluster']} gives it nothing"
        )
    asked = {name: options[name.replace("-", "_")] for name in _ASKED}
    request = job_request(asked | {"slurm": slurm_options(options["slurm"] or [])}, options["profile"])
    return replace(request, job_name=request.job_name or f"hpcdeq-{verb}")
