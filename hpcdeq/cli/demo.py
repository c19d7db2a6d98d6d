"""``hpcdeq demo``: the whole path on generated scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("hpcdeq-demo"),
) -> None:
    """Run the whole path on generated scenes, in some minutes.

    Ingest, train, denoise, evaluate, report.
    """
    from hpcdeq.console import result
    from hpcdeq.errors import HpcdeqError
    from hpcdeq.studies.demo import SHIPPED, run_demo

    made = run_demo(out)
    result(made.table)
    before, after = made.row.noisy, made.row.denoised
    assert before is not None
    result(f"PSNR: {before.psnr:.2f} dB noisy, {after.psnr:.2f} dB denoised")
    result(
        f"PSNR: {made.shipped.denoised.psnr:.2f} dB with {SHIPPED}, a model that comes along, trained on real scenes"
    )
    result(f"report: {made.report}")
    if after.psnr <= before.psnr:
        raise HpcdeqError(
            "the denoised scene is no better than the noisy one; something is wrong with this installation"
        )
