"""``hpcdeq repair``: what is damaged or missing in what was denoised, denoised again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def repair(
    out: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive that denoise wrote.")],
) -> None:
    """Denoise again what is damaged, missing or unfinished.

    Not while others write the archive.
    """
    from hpcdeq.cluster.slurm import is_slurm_here
    from hpcdeq.console import say
    from hpcdeq.errors import PartialFailureError
    from hpcdeq.inference import repair_archive
    from hpcdeq.inference.job import check_no_workers

    if is_slurm_here():
        check_no_workers(out)
    damaged, report = repair_archive(out)
    say(
        f"{sum(map(len, damaged.values()))} damaged files in {len(damaged)} scenes; {len(report.done)} scenes made whole"
    )
    if report.failed:
        raise PartialFailureError("not denoised: " + ", ".join(report.failed))
