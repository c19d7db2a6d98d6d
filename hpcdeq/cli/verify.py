"""``hpcdeq verify``: what was denoised, read back against its checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    out: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive that denoise wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result for a script.")] = False,
) -> None:
    """Read denoised scenes back against their checksums.

    Names files that are missing or not as they were written.
    """
    from hpcdeq.console import result, result_json, say
    from hpcdeq.errors import PartialFailureError
    from hpcdeq.inference import verify as run

    bad = dict(run(out))
    if as_json:
        result_json({"bad": bad})
    else:
        for name, files in bad.items():
            result("\n".join(f"{name}: {file}" for file in files or ["not in the ledger"]))
    if not bad:
        say("every file is as it was written")
    else:
        raise PartialFailureError(
            f"{len(bad)} scenes have missing or changed files, or are not in the ledger: {', '.join(bad)}; "
            f"mend them with: hpcdeq repair {out}"
        )
