"""``hpcdeq cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cancel(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a training run or study, or archive that denoise writes."
        ),
    ],
) -> None:
    """End the jobs of a run, and a command that waits for them.

    What is finished stays, and the command that submitted them goes on when it is given again.
    """
    from hpcdeq.cluster.slurm import cancel as cancel_jobs
    from hpcdeq.console import result, say
    from hpcdeq.errors import ConfigError
    from hpcdeq.inference.job import cancel_workers, jobs_folder

    submitted = [folder for folder in (run / "jobs", *sorted(run.glob("points/*/jobs"))) if folder.is_dir()]
    denoising = jobs_folder(run)
    if not (submitted or denoising.is_dir()):
        raise ConfigError(
            f"nothing was submitted for {run}: there is neither {run / 'jobs'} nor {denoising} nor a point of a study; "
            "name the run=RUN or the --out of a submit command"
        )
    ended = cancel_jobs(*submitted)
    ended += cancel_workers(run) if denoising.is_dir() else []
    if ended:
        result("\n".join(ended))
    else:
        say(
            "no job of it is in the queue; processes of this machine are ended where they were started, with Ctrl-C"
        )
