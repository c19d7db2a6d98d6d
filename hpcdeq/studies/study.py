"""A comparison as a user asks for it: what is computed, where it is kept, and the share of it that a job takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcdeq.archive import Scene, open_archive
from hpcdeq.archive.splits import read_split
from hpcdeq.cluster.ranks import place_of
from hpcdeq.cluster.request import JobRequest
from hpcdeq.cluster.signals import stop_requests
from hpcdeq.cluster.submission import Submitted, submit_each
from hpcdeq.console import say
from hpcdeq.errors import ConfigError, PartialFailureError
from hpcdeq.studies import runtime
from hpcdeq.studies.cells import Cell, Comparison, Store, compute
from hpcdeq.studies.figures import draw_all
from hpcdeq.studies.method import Method
from hpcdeq.studies.methods import choose
from hpcdeq.studies.page import write_page
from hpcdeq.studies.protocols import protocol_of
from hpcdeq.studies.study_page import render
from hpcdeq.studies.tables import Tables, gather, write_all
from hpcdeq.studies.trained import model_denoiser

BLOCKS = (20, 30, 40, 50, 60, 80, 100, 120)
ITERATIONS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 60, 80)
FIGURE_SIGMA = 50.0  # of those compared, the nearest to it is drawn where one must be chosen


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """What is compared; plain values, so that a job's description holds no code of ours."""

    archive: str
    """Clean scenes."""
    out: str
    """Folder of everything that is made."""
    sigmas: tuple[float, ...] = (30.0, 50.0, 70.0)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] | None = None
    """Those that need no training; None is all of the paper's."""
    models: tuple[str, ...] = ()
    """Folders of trained models."""
    dictionary: str | None = None
    protocol: str = "hpcdeq"
    split: str | None = None
    """Split file, of which the test part is used."""
    device: str = "auto"


class Study:
    """A comparison that is opened.

    Raises
    ------
    ConfigError
        If something that is asked for is not there, or a model has seen a scene.
    """

    def __init__(self, request: StudyRequest) -> None:
        self.request = request
        self.out = Path(request.out)
        self.protocol = protocol_of(request.protocol)
        self.scenes = _scenes(request)
        self.methods = choose(
            request.methods,
            [Path(m) for m in request.models],
            None if request.dictionary is None else Path(request.dictionary),
            self.scenes,
            request.device,
        )
        self.store = Store(self.out / "cells")

    @cached_property
    def comparison(self) -> Comparison:
        """The cells of the tables."""
        return self._of(self.methods)

    def by_block(self) -> dict[int, Comparison]:
        """The cells of Figure 6: the four models with blocks of other sizes, side by side."""
        return {
            block: replace(
                self._of(self._maps(), at_one=True), protocol=replace(self.protocol, block=block, overlap=0)
            )
            for block in BLOCKS
        }

    def by_iterations(self) -> dict[int, Comparison]:
        """The cells of Figure 7: the four models with other numbers of iterations, all of which are taken."""
        return {
            count: self._of([self._with_iterations(m, count) for m in self._maps()], at_one=True)
            for count in ITERATIONS
        }

    def figure_cells(self) -> list[Cell]:
        """All cells of Figures 6 and 7."""
        comparisons = (*self.by_block().values(), *self.by_iterations().values())
        return [cell for comparison in comparisons for cell in comparison.cells()]

    def shown(self) -> list[Cell]:
        """The cells that are shown as pictures: all methods on the first scene, with the noise level of the figures."""
        first = replace(
            self._of(self.methods, at_one=True), scenes=self.scenes[:1], seeds=self.request.seeds[:1]
        )
        return first.cells()

    def compute(self, cells: Sequence[Cell], what: str, worker: int = 0, workers: int = 1) -> None:
        """Compute cells that are not known, or a share of them.

        Raises
        ------
        PartialFailureError
            If some could not be; the others are kept.
        """
        with stop_requests() as stop:
            failed = compute(cells, self.store, stop, what, worker, workers)
        if failed:
            raise PartialFailureError(f"{len(failed)} cells could not be computed: {'; '.join(failed)}")

    def write(self, *, runtimes: bool) -> Tables:
        """Write tables, figures and the report from what is known.

        With ``runtimes`` the models are timed first, but those that were on a machine like this.
        """
        folder = self.out / "runtimes"
        timed = runtime.measure(self.methods, self.protocol, folder) if runtimes else []
        found = gather(
            self.comparison, self.store, timed or runtime.known(self.methods, self.protocol, folder)
        )
        write_all(found, self.out)
        shown = self.shown()
        drawn = draw_all(
            self.out / "figures", self.store, self.by_block(), self.by_iterations(), self.methods, shown
        )
        page = self.out / "report.html"
        write_page(page, render(found, drawn, shown, self.store))
        say(f"tables.txt, .csv, .json and .tex, figures, and the report {page}")
        return found

    @property
    def figure_sigma(self) -> float:
        """The noise level of figures that show one."""
        return min(self.request.sigmas, key=lambda sigma: abs(sigma - FIGURE_SIGMA))

    def _of(self, methods: Sequence[Method], *, at_one: bool = False) -> Comparison:
        return Comparison(
            methods=methods,
            scenes=self.scenes,
            sigmas=(self.figure_sigma,) if at_one else self.request.sigmas,
            seeds=self.request.seeds,
            protocol=self.protocol,
        )

    def _maps(self) -> list[Method]:
        return [m for m in self.methods if m.model is not None and m.model.settings.map != "prior"]

    def _with_iterations(self, method: Method, count: int) -> Method:
        model = method.model
        assert model is not None
        return replace(
            method,
            identity={**method.identity, "iterations": count},
            denoiser=lambda protocol: model_denoiser(model, protocol, self.request.device, count),
        )


def _scenes(request: StudyRequest) -> list[Scene]:
    archive = open_archive(Path(request.archive))
    scenes = (
        archive.scenes() if request.split is None else read_split(Path(request.split)).take(archive, "test")
    )
    if not scenes:
        raise ConfigError(f"the archive {request.archive} holds no scene; ingest some first")
    return scenes


def study_job(request: dict[str, Any], job: int, jobs: int) -> str:
    """Compute the share of this process of a comparison's cells, of those of the figures too; the folder."""
    study = Study(StudyRequest(**request))
    place = place_of(os.environ)
    study.compute(
        [*study.comparison.cells(), *study.figure_cells()],
        "cells",
        job * place.world_size + place.rank,
        jobs * place.world_size,
    )
    say("all cells of this process are known; hpcdeq tables and figures put them together")
    return str(study.out)


def submit_study(asked: JobRequest, request: StudyRequest) -> list[Submitted]:
    """Submit as many jobs as the request has nodes, which share the cells."""
    plain = asdict(request) | {
        name: None if path is None else str(Path(path).absolute())
        for name, path in (
            ("archive", request.archive),
            ("out", request.out),
            ("dictionary", request.dictionary),
            ("split", request.split),
        )
    }
    plain["models"] = tuple(str(Path(m).absolute()) for m in request.models)
    items = [(plain, job, asked.nodes) for job in range(asked.nodes)]
    return submit_each(asked, Path(request.out) / "jobs", study_job, items, parallel=asked.nodes)
