"""The whole path on generated scenes: raw files, archives, a trained model, denoised scenes, a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hpcdeq.archive import Archive, open_archive
from hpcdeq.archive.ingest import IngestOptions, ingest
from hpcdeq.config import load_train_config
from hpcdeq.console import say
from hpcdeq.errors import HpcdeqError
from hpcdeq.inference import DenoiseSettings, denoise_archive
from hpcdeq.noise import Gaussian
from hpcdeq.studies.degrade import degrade_archive
from hpcdeq.studies.demo_scenes import make_scene, write_raw
from hpcdeq.studies.evaluation import Row, as_table, compare_archives
from hpcdeq.studies.page import write_page
from hpcdeq.studies.report import gather, render, require_libraries
from hpcdeq.training import train
from hpcdeq.weights import find

TRAIN_SEEDS = (1, 2, 3, 4)
TEST_SEEDS = (9,)
SIGMA = 50.0
SHIPPED = "deq-fast"
RECIPE: dict[str, Any] = {
    "noise": {"sigma": SIGMA},
    "dictionary": {"atoms": 128, "iterations": 5},
    "data": {"batch": 4, "val_blocks": 8},
    "model": {
        "b": 5.0,
        "prior": {"filters": 32, "residual": False},
        "support": {"size": 5},
        "solver": {"iterations": 10},
        "adjoint": {"solver": {"iterations": 6}},
    },
    "training": {
        "pretrain_steps": 400,
        "pretrain_lr": 2e-3,
        "steps": 100,
        "lr": 3e-4,
        "validate_every": 50,
        "checkpoint_every": 50,
    },
}
"""A small DEQ for a minute on two cores: a direct prior learns fastest, a small support suits few materials."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    row: Row
    """Scores of the test scene."""
    shipped: Row
    """The same with a model that comes along, `SHIPPED`."""
    table: str
    report: Path


def run_demo(out: Path, recipe: dict[str, Any] = RECIPE, size: int = 260) -> DemoResult:
    """Run the whole path in the folder ``out``; a run that was interrupted is continued.

    Parameters
    ----------
    out
        Folder for everything that is made.
    recipe
        Training configuration, without the folders; it is written to ``train.yaml``.
    size
        Edge of the generated scenes in pixels.
    """
    require_libraries()
    say(f"1/5 ingest {len(TRAIN_SEEDS)} scenes to learn from and {len(TEST_SEEDS)} to test on")
    clean_train = _ingested(out, "train", TRAIN_SEEDS, size)
    clean = _ingested(out, "test", TEST_SEEDS, size)

    say("2/5 train a model")
    config = out / "train.yaml"
    data = {"train": str(clean_train.path), **recipe["data"]}
    content = {**recipe, "run": str(out / "run"), "data": data}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    model = train(load_train_config(config, []))

    say(f"3/5 add noise of sigma {SIGMA:g} to the test scene")
    degrade_archive(clean, out / "noisy.zarr", Gaussian(sigma=SIGMA), seed=0)
    noisy = open_archive(out / "noisy.zarr")

    say(f"4/5 denoise it, with this model and with {SHIPPED}, which comes along")
    for folder, to in ((model, "denoised"), (find(Path(SHIPPED)), f"denoised-{SHIPPED}")):
        done = denoise_archive(noisy, folder, out / f"{to}.zarr", DenoiseSettings())
        if done.failed:
            raise HpcdeqError(f"the demo could not denoise: {done.failed}")

    say("5/5 evaluate")
    results, by_shipped = (
        gather(compare_archives(clean, open_archive(out / f"{to}.zarr"), noisy), len(clean), pictures=True)
        for to in ("denoised", f"denoised-{SHIPPED}")
    )
    for failure in (*results.failures, *by_shipped.failures):
        raise HpcdeqError(f"the demo could not score: {failure.message}")
    settings = {"scenes": "generated", "sigma": f"{SIGMA:g}", "model": str(model), "config": str(config)}
    page = out / "report.html"
    write_page(page, render(results, settings, "hpcdeq demo"))
    return DemoResult(results.rows[0], by_shipped.rows[0], as_table(results.rows), page)


def _ingested(out: Path, split: str, seeds: tuple[int, ...], size: int) -> Archive:
    """Write generated scenes as raw files, and ingest these."""
    raw = [write_raw(out / "raw" / split / f"table_{seed}", make_scene(seed, size)) for seed in seeds]
    archive = out / f"{split}.zarr"
    for outcome in ingest(raw, archive, IngestOptions()):
        if outcome.status == "failed":
            raise HpcdeqError(
                f"the demo could not ingest {outcome.name}: {outcome.message}; remove {out} and try again"
            )
    return open_archive(archive)
