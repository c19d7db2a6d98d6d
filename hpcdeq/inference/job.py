"""Bulk denoising as the work of jobs: plain values in, so that a job's description holds no code of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hpcdeq.archive import open_archive
from hpcdeq.cluster.ranks import place_of
from hpcdeq.console import say
from hpcdeq.errors import PartialFailureError
from hpcdeq.inference.bulk import denoise_archive
from hpcdeq.inference.tiles import DenoiseSettings


def denoise_job(archive: str, model: str, out: str, settings: dict[str, Any], job: int, jobs: int) -> str:
    """Denoise the share of this process: the jobs share the archive, and the processes of a job its part.

    Parameters
    ----------
    archive, model, out
        Folders, as `denoise_archive` takes them.
    settings
        Fields of `DenoiseSettings`.
    job, jobs
        Which of how many jobs this process belongs to, from 0.

    Returns
    -------
    str
        The output archive.

    Raises
    ------
    PartialFailureError
        If some scenes could not be denoised; their reasons are in the ledger too.
    """
    place = place_of(os.environ)
    report = denoise_archive(
        open_archive(Path(archive)),
        Path(model),
        Path(out),
        DenoiseSettings(**settings),
        worker=job * place.world_size + place.rank,
        workers=jobs * place.world_size,
    )
    say(f"{len(report.done)} scenes complete, {len(report.failed)} failed")
    if report.failed:
        raise PartialFailureError("not denoised: " + ", ".join(report.failed))
    return out
