"""``hpcdeq doctor``: what works on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcdeq.console import result, result_json, say, table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings for a script.")] = False,
) -> None:
    """Say what works on this machine, and how to mend the rest.

    Started by torchrun, srun or mpirun it also says whether the processes find each other; rank 0 speaks for all.
    """
    import os
    from dataclasses import asdict

    from hpcdeq.cluster.probe import probe
    from hpcdeq.cluster.ranks import place_of

    findings = list(probe())
    if place_of(os.environ).rank > 0:
        return
    if as_json:
        result_json([asdict(finding) for finding in findings])
    else:
        result(table(("what", "state", "detail"), [(f.name, f.state, f.detail) for f in findings]))
        advised = [(f.name, f.advice) for f in findings if f.advice]
        if advised:
            result("\n" + table(("what", "to do"), advised))
    if any(finding.core and finding.state != "ok" for finding in findings):
        say("a thing that hpcdeq cannot work without is broken")
        raise typer.Exit(1)
