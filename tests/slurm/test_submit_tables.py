"""`hpcdeq submit tables`: cells of a comparison computed by an array of jobs, on a stand-in for SLURM and on the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcdeq.archive import Archive, open_archive
from tests.conftest import add_scene, smooth_scene
from tests.slurm.fake import FakeSlurm
from tests.slurm.lab import Lab, until
from tests.slurm.test_submit_denoise import hpcdeq
from tests.unit.studies.test_tables import saved


@pytest.fixture
def clean(tmp_path: Path) -> Archive:
    archive = open_archive(tmp_path / "clean.zarr", create=True)
    for seed in (1, 2):
        add_scene(archive, f"scene_{seed}", smooth_scene(seed, 7, 70, 66))
    saved(tmp_path / "deq")
    return archive


def asked(folder: Path, out: str) -> list[str | Path]:
    return [
        *("--archive", folder / "clean.zarr", "--out", folder / out, "--sigma", "50", "--device", "cpu"),
        *("--methods", "noisy,fast-tv", "--model", folder / "deq"),
    ]


def test_a_dry_run_writes_nothing(clean: Archive, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    before = set(tmp_path.rglob("*"))
    words = ("submit", "tables", *asked(tmp_path, "study"), "--time", "60", "--nodes", "4", "--dry-run")
    done = hpcdeq(*words)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-3%4" in done.stdout
    assert "#SBATCH --job-name=hpcdeq-tables" in done.stdout
    assert set(tmp_path.rglob("*")) == before
    assert fake_slurm.calls("sbatch") == []


def test_what_cannot_work_is_said_before_anything_is_submitted(
    clean: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    words = ["submit", "tables", *asked(tmp_path, "study"), "--time", "60", "--model", tmp_path / "none"]
    done = hpcdeq(*words)
    assert done.returncode == 1
    assert "no model.json in" in done.stderr
    assert fake_slurm.calls("sbatch") == []


def test_jobs_share_the_cells_and_the_tables_are_those_of_one_process(
    lab: Lab, clean: Archive, tmp_path: Path
) -> None:
    done = hpcdeq(
        "submit", "tables", *asked(tmp_path, "jobs"), "--profile", "lab", "--nodes", "3", environ=lab.environ
    )
    assert done.returncode == 0, done.stderr
    cells = tmp_path / "jobs/cells"
    # The tables' six, and of the figures eight block sizes and twelve numbers of iterations for each scene.
    until(
        lambda: len(list(cells.glob("*.json"))) == 6 + 2 * (8 + 12),
        lambda: f"cells: {len(list(cells.glob('*.json')))}",
        240,
    )
    until(lambda: not lab.run("squeue", "--noheader").strip(), lambda: "the end of the jobs", 60)
    known = {path: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert not list(cells.glob(".*"))
    for out in ("jobs", "one"):
        told = hpcdeq("tables", *asked(tmp_path, out))
        assert told.returncode == 0, told.stderr
    assert {path: path.stat().st_mtime_ns for path in cells.iterdir()} == known, "none was computed again"
    found = [json.loads((tmp_path / out / "tables.json").read_text())["tables"] for out in ("jobs", "one")]
    for table in (table for tables in found for table in tables):
        for row in table["rows"]:
            del row["seconds"]
    assert found[0] == found[1]
