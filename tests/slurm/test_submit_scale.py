"""`hpcdeq submit scale` on the lab: a job for each point, one after the other, and a study that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcdeq.archive import Archive, open_archive
from hpcdeq.models import save_model
from hpcdeq.studies.scaling.study import Study
from tests.conftest import add_scene, smooth_scene
from tests.slurm.fake import FakeSlurm
from tests.slurm.lab import Lab, until
from tests.slurm.test_submit_denoise import hpcdeq
from tests.unit.inference.test_denoise import small_model


@pytest.fixture
def noisy(tmp_path: Path) -> Archive:
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    for seed in range(9):
        add_scene(archive, f"scene_{seed}", smooth_scene(seed, 7, 70, 66))
    save_model(small_model(), tmp_path / "model", {})
    return archive


def asked(folder: Path, sizes: str) -> list[str | Path]:
    return [
        *(
            "submit",
            "scale",
            "denoise",
            folder / "noisy.zarr",
            "--model",
            folder / "model",
            "--out",
            folder / "study",
        ),
        *("--sizes", sizes, "--repeats", "2", "--device", "cpu"),
    ]


def test_a_dry_run_tells_the_node_hours_and_writes_nothing(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    before = set(tmp_path.rglob("*"))
    done = hpcdeq(*asked(tmp_path, "1x1,2x2"), "--time", "30", "--gpus-per-node", "4", "--dry-run")
    assert done.returncode == 0, done.stderr
    # Strong: 1 and 2 nodes; weak: the same; half an hour each.
    assert "0 points are measured, 4 are not: 3 node-hours" in done.stdout
    assert "#SBATCH --nodes=1" in done.stdout
    assert "#SBATCH --gpus-per-node=1" in done.stdout, "a GPU for each process"
    assert set(tmp_path.rglob("*")) == before
    assert fake_slurm.calls("sbatch") == []


@pytest.mark.slow
def test_points_run_one_after_the_other_and_a_study_that_was_cut_goes_on(
    lab: Lab, noisy: Archive, tmp_path: Path
) -> None:
    words = [*asked(tmp_path, "1x1,2x1,3x1"), "--modes", "weak", "--profile", "lab"]
    done = hpcdeq(*words, environ=lab.environ)
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.split()
    assert len(jobs) == 3
    study = Study(tmp_path / "study")
    lab.wait(jobs[0], "COMPLETED", 120)
    assert lab.states(jobs[2])[jobs[2]] == "PENDING", "they disturb each other otherwise"
    done = hpcdeq("cancel", tmp_path / "study", environ=lab.environ)
    assert jobs[2] in done.stdout.split(), done.stderr
    until(lambda: not lab.squeue().strip(), lambda: "the end of the jobs", 60)
    (first,) = study.out.glob("points/*1x1*/result.json")
    measured = first.stat().st_mtime_ns
    left = 3 - len(study.results())
    done = hpcdeq(*words, environ=lab.environ)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == left, "those that are missing, no more"
    again = hpcdeq(*words, environ=lab.environ)
    assert again.stdout.strip() == "", "what is queued is not submitted again"
    until(lambda: len(study.results()) == 3, lambda: f"points: {len(study.results())}", 180)
    until(lambda: not lab.squeue().strip(), lambda: "the end of the jobs", 60)
    assert first.stat().st_mtime_ns == measured
    for result in study.results():
        (host,) = result.hosts
        assert host.processes == result.nodes, "nodes that share a kernel are one machine"
        assert len(host.name.split(", ")) == result.nodes
    done = hpcdeq("scale", study.out, "--scenes", "50", environ=lab.environ)
    assert done.returncode == 0, done.stderr
    told = json.loads((study.out / "scaling.json").read_text())
    assert len(told["points"]) == 3
    assert (study.out / "report.html").is_file()


def test_a_study_without_points_says_how_to_measure_some(tmp_path: Path) -> None:
    done = hpcdeq("scale", tmp_path / "none")
    assert done.returncode == 2
    assert "hpcdeq submit scale train|denoise" in done.stderr
    assert not (tmp_path / "none").exists()
