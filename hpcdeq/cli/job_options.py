"""Options of every verb that runs as a job."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import typer


class Cluster(StrEnum):
    """Where a job runs."""

    SLURM = "slurm"
    LOCAL = "local"
    DEBUG = "debug"


@dataclass(frozen=True)
class JobOptions:
    """The options, in the order in which help lists them."""

    cluster: Annotated[
        Cluster,
        typer.Option(help="slurm; local: processes of this machine, waited for; debug: in this process."),
    ] = Cluster.SLURM
    profile: Annotated[
        str | None,
        typer.Option(
            help="YAML file with these options, or the name of one in slurm/profiles/; the command line wins."
        ),
    ] = None
    nodes: Annotated[int | None, typer.Option(help="Nodes. [default: 1]")] = None
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of each node. [default: 0]")] = None
    tasks_per_node: Annotated[
        int | None, typer.Option(help="Processes on each node. [default: one a GPU, or one]")
    ] = None
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores, and threads, of each process.")] = None
    mem: Annotated[str | None, typer.Option(help="Memory of each node, e.g. 64G.")] = None
    time: Annotated[
        str | None,
        typer.Option(help="Longest time of one attempt: minutes, H:MM:SS or D-HH. Needed for slurm."),
    ] = None
    partition: Annotated[str | None, typer.Option(help="Partition to queue in.")] = None
    account: Annotated[str | None, typer.Option(help="Account that pays.")] = None
    qos: Annotated[str | None, typer.Option(help="Quality of service.")] = None
    constraint: Annotated[str | None, typer.Option(help="Features of the nodes, e.g. 'a100|h100'.")] = None
    job_name: Annotated[str | None, typer.Option(help="Name in the queue. [default: hpcdeq-VERB]")] = None
    signal_seconds: Annotated[
        int | None, typer.Option(help="How long before its end an attempt is told to stop. [default: 120]")
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[=VALUE]", help="Another option of sbatch, e.g. exclude=n3; may be repeated."
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what sbatch would be given, and write nothing.")
    ] = False


def with_job_options(*left_out: str, **others: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb these options behind its own: it gets them as ``job``.

    Parameters
    ----------
    left_out
        Those that the verb decides.
    others
        Those that it describes otherwise, as annotated types.
    """
    hints = get_type_hints(JobOptions, include_extras=True) | others
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(JobOptions)
        if field.name not in left_out
    ]

    def extended(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def run(**given: Any) -> None:
            job = JobOptions(**{option.name: given.pop(option.name) for option in options})
            verb(**given, job=job)

        # typer reads a signature, and knows no groups of options.
        signature = inspect.signature(verb, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "job"]
        run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return run

    return extended


def job_request_of(verb: str, job: JobOptions) -> Any:
    """What a verb's options ask of the cluster."""
    from dataclasses import replace

    from hpcdeq.cluster.request import job_request, slurm_options
    from hpcdeq.errors import ConfigError

    if job.dry_run and job.cluster != Cluster.SLURM:
        raise ConfigError(
            f"--dry-run shows what sbatch would be given; --cluster {job.cluster} gives it nothing"
        )
    asked = {
        name.replace("_", "-"): value
        for name, value in vars(job).items()
        if name not in ("cluster", "profile", "slurm", "dry_run")
    }
    request = job_request(asked | {"slurm": slurm_options(job.slurm or [])}, job.profile)
    return replace(request, job_name=request.job_name or f"hpcdeq-{verb}")
