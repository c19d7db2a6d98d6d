"""``hpcdeq cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cancel(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, or archive that denoise writes.")],
) -> None:
    """End the jobs that were submitted for a run. What is finished stays; the command that submitted them goes on."""
    from hpcdeq.cluster.submission import cancel as cancel_jobs
    from hpcdeq.console import result, say
    from hpcdeq.errors import ConfigError
    from hpcdeq.inference.job import jobs_folder

    folders = [folder for folder in (run / "jobs", jobs_folder(run)) if folder.is_dir()]
    if not folders:
        raise ConfigError(
            f"nothing was submitted for {run}: there is neither {run / 'jobs'} nor {jobs_folder(run)}"
        )
    ended = [job for folder in folders for job in cancel_jobs(folder)]
    if ended:
        result("\n".join(ended))
    else:
        say("no job of it is in the queue")
