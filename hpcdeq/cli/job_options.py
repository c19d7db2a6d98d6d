"""Options of every verb that runs as a job."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class Cluster(StrEnum):
    """Where a job runs."""

    SLURM = "slurm"
    LOCAL = "local"
    DEBUG = "debug"


# What every verb's job may ask for.
_ASKED = (
    *("nodes", "gpus-per-node", "tasks-per-node", "cpus-per-task", "mem", "time", "partition", "account"),
    *("qos", "constraint", "job-name", "signal-seconds"),
)
ClusterName = Annotated[
    Cluster, typer.Option(help="slurm; local: processes of this machine, waited for; debug: in this process.")
]
Profile = Annotated[
    str | None,
    typer.Option(
        help="YAML file with these options, or the name of one in slurm/profiles/; the command line wins."
    ),
]
Nodes = Annotated[int | None, typer.Option(help="Nodes. [default: 1]")]
GpusPerNode = Annotated[int | None, typer.Option(help="GPUs of each node. [default: 0]")]
TasksPerNode = Annotated[
    int | None, typer.Option(help="Processes on each node. [default: one a GPU, or one]")
]
CpusPerTask = Annotated[int | None, typer.Option(help="Cores, and threads, of each process.")]
Mem = Annotated[str | None, typer.Option(help="Memory of each node, e.g. 64G.")]
Time = Annotated[
    str | None,
    typer.Option(help="Longest time of one attempt: minutes, H:MM:SS or D-HH. Needed for slurm."),
]
Partition = Annotated[str | None, typer.Option(help="Partition to queue in.")]
Account = Annotated[str | None, typer.Option(help="Account that pays.")]
Qos = Annotated[str | None, typer.Option(help="Quality of service.")]
Constraint = Annotated[str | None, typer.Option(help="Features of the nodes, e.g. 'a100|h100'.")]
JobName = Annotated[str | None, typer.Option(help="Name in the queue. [default: hpcdeq-VERB]")]
SignalSeconds = Annotated[
    int | None,
    typer.Option(help="How long before its end an attempt is told to stop. [default: 120]"),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY[=VALUE]", help="Another option of sbatch, e.g. exclude=n3; may be repeated."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what sbatch would be given, and write nothing.")
]


def job_request_of(verb: str, options: dict[str, Any]) -> Any:
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
