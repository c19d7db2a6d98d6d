"""``hpcdeq scale``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def scale(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="Folder of a study, as submit scale made it.")
    ],
    scenes: Annotated[int, typer.Option(help="Scenes of the archive that projections are for.")] = 100_000,
    edge: Annotated[int, typer.Option(help="Their edge in pixels.")] = 1300,
    steps: Annotated[int, typer.Option(help="Training steps that projections are for.")] = 100_000,
    deadline_hours: Annotated[
        float | None, typer.Option(help="By when it must be done: also say how many nodes that needs.")
    ] = None,
    mtbf_hours: Annotated[
        float, typer.Option(help="Mean time between failures of a node, for the simulation.")
    ] = 6000.0,
    repair_hours: Annotated[
        float, typer.Option(help="Until a node that failed is back; 0: there are others.")
    ] = 0.0,
    preemptions_per_node_hour: Annotated[float, typer.Option(help="How often a job loses its node.")] = 0.0,
) -> None:
    """Report how training and bulk denoising scale.

    Curves, where the time goes, fits, projections, and how many nodes are worth paying for. Writes report.html, scaling.txt,
    .csv, .json and figures into the study's folder, from what is measured so far.
    """
    from hpcdeq.console import result, say
    from hpcdeq.errors import ConfigError
    from hpcdeq.studies.page import require_libraries
    from hpcdeq.studies.scaling.analysis import sections
    from hpcdeq.studies.scaling.exports import as_text
    from hpcdeq.studies.scaling.forecast import Ask
    from hpcdeq.studies.scaling.report import write_report
    from hpcdeq.studies.scaling.study import Study

    require_libraries("the report", "matplotlib", "jinja2")
    require_libraries("simulations", "simpy", extra="scale")
    ask = Ask(
        scenes=scenes,
        edge=edge,
        steps=steps,
        deadline_hours=deadline_hours,
        mtbf_hours=mtbf_hours,
        repair_hours=repair_hours,
        preemptions_per_node_hour=preemptions_per_node_hour,
    )
    kept = Study(study)
    points, results = kept.points(), kept.results()
    if not results:
        how = (
            f"none of its {len(points)} points is measured yet; their logs are in {study}/points/*/jobs"
            if points
            else f"measure some points with: hpcdeq submit scale train|denoise ... --out {study}"
        )
        raise ConfigError(f"{study}: there is nothing to report: {how}")
    if len(results) < len(points):
        say(f"{len(points) - len(results)} of {len(points)} points are not measured yet")
    follows = sections(results, ask)
    page = write_report(results, follows, study)
    result(as_text(results, follows))
    say(f"the report: {page}")
