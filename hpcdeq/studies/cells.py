"""Cells of a comparison: one method on one scene with one noise, each kept in a file of its own once it is known."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcdeq.archive import Scene
from hpcdeq.cluster.machine import machine
from hpcdeq.cluster.signals import StopRequest
from hpcdeq.console import Bar, say
from hpcdeq.errors import PreemptedError
from hpcdeq.metrics import Scores, evaluate_all
from hpcdeq.studies.method import Method
from hpcdeq.studies.methods import for_sigma
from hpcdeq.studies.page import middle, rgb_bands, stretched, typical_points, white_of, write_whole
from hpcdeq.studies.protocols import Case, Protocol

VERSION = 1
MAX_EDGE = 256  # pixels of the middle of a scene that are kept to be looked at
_ERROR_WHITE = 0.5  # of the noise's standard deviation: mean error of a pixel's bands that is drawn brightest

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be known."""

    method: Method
    scene: Scene
    sigma: float
    """Noise level on the scale of 0 to 255."""
    seed: int
    protocol: Protocol

    @property
    def key(self) -> dict[str, Any]:
        """Everything that decides the cell, as JSON values."""
        return {
            "version": VERSION,
            "method": self.method.key,
            "identity": self.method.identity,
            "scene": self.scene.content_sha256,
            "sigma": self.sigma,
            "seed": self.seed,
            "protocol": {k: v for k, v in asdict(self.protocol).items() if k != "about"},
        }

    @property
    def name(self) -> str:
        """Name of its file."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.scene.name}-{self.sigma:g}-{self.seed}-{digest}"


@dataclass(frozen=True)
class Found:
    """A cell that is known."""

    scores: Scores
    seconds: float
    """It took, on this machine."""
    machine: dict[str, Any]


@dataclass(frozen=True)
class Look:
    """What there is to see of a cell: the middle of the scene."""

    colours: NDArray[np.uint8]
    """(y, x, 3) false colours, with the stretch of the clean scene."""
    clean: NDArray[np.uint8]
    """(y, x, 3), likewise."""
    error: NDArray[np.uint8]
    """(y, x): mean over bands of the absolute error; 255 is half of the noise's standard deviation."""
    points: NDArray[np.int64]
    """(point, 2): rows and columns of a dim, a middling and a bright pixel."""
    spectra: Floats
    """(point, band) of the estimate."""
    clean_spectra: Floats
    """(point, band)."""
    axis: NDArray[np.float64]
    """(band,): wavelengths in nm, or numbers of the bands from 1."""


class Store:
    """The folder of the cells that are known.

    A cell is written in one step, under a name that says what decides it: processes that work at the same time, or the same cell
    computed twice, do no harm, and a cell of other settings is another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, cell: Cell) -> Found | None:
        """Return what is known of a cell, if it is."""
        try:
            told = json.loads(self._path(cell, "json").read_text())
            return Found(Scores(**told["scores"]), told["seconds"], told["machine"])
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, KeyError, TypeError):
            say(f"{self._path(cell, 'json')} is damaged: computed again")
            return None

    def look(self, cell: Cell) -> Look | None:
        """Return what there is to see of a cell."""
        try:
            with np.load(self._path(cell, "npz"), allow_pickle=False) as stored:
                return Look(**{name: stored[name] for name in stored.files})
        except (OSError, ValueError, TypeError):
            return None

    def put(self, cell: Cell, found: Found, look: Look | None) -> None:
        """Keep a cell."""
        if look is not None:
            packed = io.BytesIO()
            np.savez_compressed(packed, **look.__dict__)
            write_whole(self._path(cell, "npz"), packed.getvalue())
        told = {
            "key": cell.key,
            "scores": asdict(found.scores),
            "seconds": found.seconds,
            "machine": found.machine,
        }
        write_whole(self._path(cell, "json"), (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())

    def _path(self, cell: Cell, kind: str) -> Path:
        return self.folder / f"{cell.name}.{kind}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which cells there are."""

    methods: Sequence[Method]
    scenes: Sequence[Scene]
    sigmas: Sequence[float]
    seeds: Sequence[int]
    protocol: Protocol

    def cells(self) -> list[Cell]:
        """All cells, those of one noisy scene together."""
        return [
            Cell(method=method, scene=scene, sigma=sigma, seed=seed, protocol=self.protocol)
            for sigma in self.sigmas
            for scene in self.scenes
            for seed in self.seeds
            for method in for_sigma(self.methods, sigma)
        ]


def compute(
    cells: Sequence[Cell], store: Store, stop: StopRequest, what: str, worker: int = 0, workers: int = 1
) -> dict[str, str]:
    """Compute the cells that are not known yet, and keep each at once.

    Parameters
    ----------
    cells
        All cells.
    store
        Where they are kept.
    stop
        Asked after every cell.
    what
        What the bar says.
    worker, workers
        Which of how many processes this one is: it takes its share of the cells that nobody has computed before.

    Returns
    -------
    dict
        Why cells could not be computed, by what they are; the others were.

    Raises
    ------
    PreemptedError
        If a signal asked to stop.
    """
    failed: dict[str, str] = {}
    here = machine()
    if workers > 1:  # otherwise one process might get all cells of the slowest method
        cells = sorted(cells, key=lambda cell: hashlib.sha256(cell.name.encode()).digest())[worker::workers]
    missing = [cell for cell in cells if store.get(cell) is None]
    with Bar(what, len(missing)) as bar:
        prepared: tuple[tuple[Any, ...], Case] | None = None
        for cell in missing:
            bar.note(cell.method.title)
            try:
                wanted = (cell.scene.path, cell.sigma, cell.seed, cell.protocol)
                if prepared is None or prepared[0] != wanted:
                    prepared = wanted, cell.protocol.case(cell.scene, cell.sigma, cell.seed)
                store.put(cell, *_compute(cell, prepared[1], here))
            except Exception as error:  # public tools raise whatever they like
                what_failed = f"{cell.method.title} on {cell.scene.name} at sigma {cell.sigma:g}"
                failed[what_failed] = f"{type(error).__name__}: {error}"
                say(f"{what_failed}: {failed[what_failed]}")
            bar.advance()
            if stop:
                raise PreemptedError(
                    f"asked to stop: {bar.done} of {len(missing)} cells are known; the same command goes on"
                )
    return failed


def _compute(cell: Cell, case: Case, here: dict[str, Any]) -> tuple[Found, Look]:
    if cell.method.model is not None and cell.method.model.bands != len(case.clean):
        raise ValueError(
            f"the scene has {len(case.clean)} bands, the model was trained for {cell.method.model.bands}"
        )
    denoise = cell.method.denoiser(cell.protocol)
    begin = time.perf_counter()
    estimate = denoise(case.noisy, cell.sigma / 255)
    seconds = time.perf_counter() - begin
    mask = None if case.valid.all() else case.valid
    found = Found(evaluate_all(case.clean, estimate, mask), seconds, here)
    return found, _look(case, estimate, cell.sigma)


def _look(case: Case, estimate: Floats, sigma: float) -> Look:
    cut = middle(case.valid.shape, MAX_EDGE)
    clean, found, valid = case.clean[cut], estimate[cut], case.valid[cut]
    bands, _ = rgb_bands(case.wavelengths, len(clean))
    white = white_of(clean[bands], valid)

    def colours(scene: Floats) -> NDArray[np.uint8]:
        return _bytes(stretched(scene[bands], white, valid))

    error = np.abs(found - clean).mean(axis=0) / (_ERROR_WHITE * sigma / 255)
    points = np.array(typical_points(clean, valid), np.int64).reshape(-1, 2)
    axis = np.arange(1.0, len(clean) + 1) if case.wavelengths is None else case.wavelengths
    return Look(
        colours=colours(found),
        clean=colours(clean),
        error=_bytes(np.clip(error, 0.0, 1.0)),
        points=points,
        spectra=found[:, points[:, 0], points[:, 1]].T.copy(),
        clean_spectra=clean[:, points[:, 0], points[:, 1]].T.copy(),
        axis=axis,
    )


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(255 * values).astype(np.uint8)
