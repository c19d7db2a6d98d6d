"""``hpcdeq degrade``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def degrade(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of clean scenes.")],
    out: Annotated[Path, typer.Option(help="Archive of noisy scenes to write.")],
    sigma: Annotated[
        float | None, typer.Option(help="Gaussian noise of this standard deviation, in units of 1/255.")
    ] = None,
    case: Annotated[
        str | None, typer.Option(help="Complex noise: non_iid, stripe, deadline, impulse or mixture.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
) -> None:
    """Add synthetic noise to an archive, to try a model on."""
    from hpcdeq.archive import open_archive
    from hpcdeq.console import result
    from hpcdeq.errors import ConfigError, PartialFailureError
    from hpcdeq.noise import Complex, Gaussian
    from hpcdeq.studies.degrade import degrade_archive

    if (sigma is None) == (case is None):
        raise ConfigError("give either --sigma S (Gaussian) or --case NAME (complex noise)")
    try:
        degradation = Gaussian(sigma=sigma) if case is None else Complex(case=case)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    failed = degrade_archive(open_archive(archive), out, degradation, seed)
    if failed:
        raise PartialFailureError("not degraded: " + ", ".join(failed))
    result(str(out))
