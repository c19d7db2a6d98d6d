"""``hpcdeq submit``: verbs as jobs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


@submit.callback()
def _verbs() -> None:
    """Keep the verb's name on the command line while there is only one."""


@submit.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. data.train=scenes.zarr run=runs/a"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; see configs/.")] = None,
    cluster: Annotated[
        Cluster,
        typer.Option(help="slurm; local: processes of this machine, waited for; debug: in this process."),
    ] = Cluster.SLURM,
    profile: Annotated[
        str | None,
        typer.Option(
            help="YAML file with these options, or the name of one in slurm/profiles/; the command line wins."
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes. (default: 1)")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of each node. (default: 0)")] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(help="Processes on each node. (default: one a GPU, or one)")
    ] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores, and threads, of each process.")] = None,
    mem: Annotated[str | None, typer.Option(help="Memory of each node, e.g. 64G.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="Longest time of one attempt: minutes, H:MM:SS or D-HH. Needed for slurm."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition to queue in.")] = None,
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Features of the nodes, e.g. 'a100|h100'.")] = None,
    job_name: Annotated[str | None, typer.Option(help="Name in the queue. (default: hpcdeq-train)")] = None,
    signal_seconds: Annotated[
        int | None,
        typer.Option(help="How long before its end an attempt is told to write a checkpoint. (default: 120)"),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]", help="Another option of sbatch, e.g. exclude=n3; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what sbatch would be given, and write nothing.")
    ] = False,
) -> None:
    """Train as a job. On SLURM it is queued again at its time limit, and goes on, until it is finished.

    Prints the job's number (slurm) and returns, or waits and prints the model's folder (local, debug).
    """
    from hpcdeq.cluster.request import job_request, slurm_options
    from hpcdeq.cluster.submission import run_local, sbatch_text
    from hpcdeq.cluster.submission import submit as submit_job
    from hpcdeq.config import load_train_config
    from hpcdeq.console import result, say
    from hpcdeq.errors import ConfigError

    request = job_request(
        {
            "nodes": nodes,
            "gpus-per-node": gpus_per_node,
            "tasks-per-node": tasks_per_node,
            "cpus-per-task": cpus_per_task,
            "mem": mem,
            "time": time,
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "job-name": job_name,
            "signal-seconds": signal_seconds,
            "slurm": slurm_options(slurm or []),
        },
        profile,
    )
    if dry_run and cluster != Cluster.SLURM:
        raise ConfigError(f"--dry-run shows what sbatch would be given; --cluster {cluster} gives it nothing")
    resolved = load_train_config(config, overrides or [])
    folder = resolved.run / "jobs"
    if dry_run:
        result(sbatch_text(request, folder).rstrip())
        return
    from hpcdeq.training.job import train_job

    plain = resolved.model_dump(mode="json")
    if cluster == Cluster.DEBUG:
        result(train_job(plain))
    elif cluster == Cluster.LOCAL:
        result(run_local(request, folder, train_job, plain))
    else:
        job = submit_job(request, folder, train_job, plain)
        say(f"job {job.id} is in the queue; it was given {job.script}; rank 0 says what it does in {job.log}")
        result(job.id)
