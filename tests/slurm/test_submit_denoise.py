"""`hpcdeq submit denoise`: workers as an array of jobs, on a stand-in for SLURM and on the lab."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcdeq.archive import Archive, open_archive
from hpcdeq.cluster.request import JobRequest
from hpcdeq.errors import JobError
from hpcdeq.inference import DenoiseSettings, denoise_archive, job, plan_archive
from hpcdeq.inference.job import see_through, submit_workers
from hpcdeq.models import save_model
from tests.conftest import add_scene, smooth_scene
from tests.slurm.fake import FakeSlurm
from tests.slurm.lab import ROOT, Lab, until
from tests.slurm.test_submission import number_the_jobs
from tests.unit.inference.test_bulk import bytes_of
from tests.unit.inference.test_denoise import small_model

SETTINGS = DenoiseSettings(device="cpu")


@pytest.fixture
def noisy(tmp_path: Path) -> Archive:
    """Scenes of several units."""
    archive = open_archive(tmp_path / "noisy.zarr", create=True)
    for i, (height, width) in enumerate([(600, 340), (70, 90), (131, 800)]):
        add_scene(archive, f"scene{i}", smooth_scene(i, 7, height, width))
    save_model(small_model(), tmp_path / "model", {})
    return archive


def hpcdeq(
    *words: str | Path, environ: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcdeq", *map(str, words)],
        env={**(os.environ if environ is None else environ), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def command(folder: Path) -> list[str | Path]:
    return [
        *("submit", "denoise", folder / "noisy.zarr", "--model", folder / "model"),
        *("--out", folder / "out.zarr", "--device", "cpu"),
    ]


def test_a_dry_run_writes_nothing(noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    before = set(tmp_path.rglob("*"))
    done = hpcdeq(*command(tmp_path), "--time", "60", "--nodes", "16", "--max-parallel", "3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-15%3" in done.stdout
    assert "#SBATCH --job-name=hpcdeq-denoise" in done.stdout
    assert set(tmp_path.rglob("*")) == before
    assert fake_slurm.calls("sbatch") == []


def test_workers_are_submitted_for_a_plan_that_is_in_the_ledger(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    done = hpcdeq(*command(tmp_path), "--time", "60", "--nodes", "4")
    assert (done.returncode, done.stdout) == (0, "77\n"), done.stderr
    told = json.loads(hpcdeq("status", tmp_path / "out.zarr", "--json").stdout)
    assert [scene["state"] for scene in told["scenes"]] == ["pending"] * 3
    fake_slurm.answers("squeue", "77")
    options = ["--time", "60", "--overwrite", "--slurm", "dependency=afterany:77"]
    again = hpcdeq(*command(tmp_path), *options)
    assert again.returncode == 2
    out = tmp_path / "out.zarr"
    assert again.stderr == (
        f"error: {out} is queued or running already as job 77: wait for it, or end it with hpcdeq cancel {out}\n"
    )
    ended = hpcdeq("cancel", tmp_path / "out.zarr")
    assert (ended.returncode, ended.stdout) == (0, "77\n")


def test_the_numbers_of_all_arrays_are_printed(noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.answers("scontrol", "MaxArraySize            = 3")
    number_the_jobs(fake_slurm)
    done = hpcdeq(*command(tmp_path), "--time", "60", "--nodes", "5")
    assert (done.returncode, done.stdout) == (0, "1\n2\n3\n"), done.stderr


@pytest.mark.parametrize("verb", ["status", "cancel", "verify", "repair"])
def test_the_archive_may_be_the_folder_that_one_is_in(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(noisy, tmp_path / "model", out, SETTINGS)
    (tmp_path / "out.zarr.ledger/jobs").mkdir()
    expected = bytes_of(out)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for place in ("", "scene0"):
        done = hpcdeq(verb, ".." if place else ".", cwd=out / place)
        assert done.returncode == 0, done.stderr
    assert bytes_of(out) == expected


def test_what_jobs_write_is_not_repaired_meanwhile(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    out = tmp_path / "out.zarr"
    plan_archive(noisy, tmp_path / "model", out, SETTINGS)
    submit_workers(JobRequest(time="60"), out, None)
    fake_slurm.answers("squeue", "77")
    done = hpcdeq("repair", out)
    assert done.returncode == 2
    assert f"{out} is queued or running already as job 77" in done.stderr
    assert open_archive(out).names() == []
    fake_slurm.answers("squeue", "78")
    done = hpcdeq("repair", out)
    assert done.returncode == 0, done.stderr
    assert open_archive(out).names() == noisy.names()


def test_a_scene_that_the_ledger_has_lost_is_not_said_to_have_no_files(
    noisy: Archive, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(noisy, tmp_path / "model", out, SETTINGS)
    (tmp_path / "out.zarr.ledger/complete/scene1.json").unlink()
    done = hpcdeq("verify", out)
    assert (done.returncode, done.stdout) == (3, "scene1: not in the ledger\n")
    assert "error: 1 scenes have missing or changed files, or are not in the ledger: scene1;" in done.stderr


def test_processes_of_this_machine_are_cancelled_without_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.zarr.ledger/jobs").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = hpcdeq("cancel", tmp_path / "out.zarr")
    assert done.returncode == 0, done.stderr
    assert "no job of it is in the queue; processes of this machine are ended where" in done.stderr


def test_workers_with_gpus_are_submitted_from_a_node_without_one(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = hpcdeq(*command(tmp_path), "--device", "cuda", "--time", "60", "--gpus-per-node", "1")
    assert (done.returncode, done.stdout) == (0, "77\n"), done.stderr


def test_what_cannot_be_denoised_is_said_before_anything_is_submitted(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    done = hpcdeq(*command(tmp_path), "--time", "60", "--overlap", "24")
    assert done.returncode == 2
    assert "overlap must be below the model's block of 24 pixels, got 24" in done.stderr
    assert fake_slurm.calls("sbatch") == []


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("out.zarr", [], "--time is not set"),
        ("o'ut.zarr", ["--time", "60"], "choose another with run=FOLDER or --out FOLDER"),
        ("out.zarr", ["--cluster", "local", "--nodes", "2"], "--nodes must be 1, got 2"),
        ("out.zarr", ["--cluster", "debug", "--device", "cuda"], "torch sees no CUDA device"),
        ("out.zarr", ["--time", "60", "--device", "tpux"], "'tpux' is not one of auto, cpu, cuda"),
    ],
)
def test_of_a_wrong_request_nothing_is_done_also_to_what_would_be_overwritten(
    noisy: Archive,
    tmp_path: Path,
    fake_slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
    line: str,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    denoise_archive(noisy, tmp_path / "model", tmp_path / name, SETTINGS)
    before = bytes_of(tmp_path)
    done = hpcdeq(*command(tmp_path), "--out", tmp_path / name, "--overwrite", *options)
    assert done.returncode == 2
    assert line in done.stderr
    assert bytes_of(tmp_path) == before


def test_no_job_is_begun_where_no_scene_can_be_denoised(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    done = hpcdeq(*command(tmp_path), "--time", "60", "--model", "du-fast")  # of 31 bands
    assert done.returncode == 3
    assert "scene0: 7 bands, but the model knows 31; train one for this sensor\n" in done.stderr
    assert f"error: no scene of {noisy.path} can be denoised, and no job was begun\n" in done.stderr
    assert fake_slurm.calls("sbatch") == []


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_processes_of_this_machine_write_the_same(noisy: Archive, tmp_path: Path, cluster: str) -> None:
    denoise_archive(noisy, tmp_path / "model", tmp_path / "one.zarr", SETTINGS)
    options = ["--tasks-per-node", "2"] if cluster == "local" else []
    done = hpcdeq(*command(tmp_path), "--cluster", cluster, *options)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "out.zarr")), done.stderr
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(tmp_path / "one.zarr")


def answer_as_a_queue(fake_slurm: FakeSlurm, *, after_sbatch: str = "") -> None:
    """A job is in the queue when it was submitted, until it is cancelled."""
    folder = fake_slurm.folder
    scripts = {
        "sbatch": f"echo 77 >{folder}/queue\n{after_sbatch}\necho Submitted batch job 77",
        "scancel": f"rm {folder}/queue",
        "squeue": f'case "$*" in *%i*) ;; *) cat {folder}/queue 2>/dev/null ;; esac; true',  # none is held
    }
    for name, script in scripts.items():
        (folder / name).write_text(f'#!/bin/sh\necho "$0 $@" >>{folder}/calls\n{script}\n')


def test_who_waits_gives_up_when_the_jobs_have_ended_three_times_without_a_unit(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    out, request = tmp_path / "out.zarr", JobRequest(time="60")
    plan_archive(noisy, tmp_path / "model", out, SETTINGS)
    submit_workers(request, out, None)
    with pytest.raises(JobError, match="the jobs ended 3 times without finishing anything"):
        see_through(request, out, None)
    assert len(fake_slurm.calls("sbatch")) == 3


def test_what_is_cancelled_is_not_submitted_again_by_who_waits(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, request = tmp_path / "out.zarr", JobRequest(time="60")
    plan_archive(noisy, tmp_path / "model", out, SETTINGS)
    answer_as_a_queue(fake_slurm)
    said = []
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=lambda _: said.append(hpcdeq("cancel", out))))
    for attempt in (1, 2):  # it may be submitted anew
        submit_workers(request, out, None)
        with pytest.raises(JobError, match="its jobs were cancelled; the same command goes on"):
            see_through(request, out, None)
        assert [done.stdout for done in said] == ["77\n"] * attempt
        assert len(fake_slurm.calls("sbatch")) == attempt


def test_what_is_cancelled_while_it_is_submitted_again_is_ended(
    noisy: Archive, tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, request = tmp_path / "out.zarr", JobRequest(time="60")
    plan_archive(noisy, tmp_path / "model", out, SETTINGS)
    submit_workers(request, out, None)
    marker = out.with_name("out.zarr.ledger") / "jobs/cancelled"
    answer_as_a_queue(fake_slurm, after_sbatch=f"touch {marker}")
    with pytest.raises(JobError, match="its jobs were cancelled"):
        see_through(request, out, None)
    assert len(fake_slurm.calls("sbatch")) == 2
    assert fake_slurm.calls("scancel") == ["77"]


@pytest.mark.slow
def test_workers_on_nodes_write_the_same_and_a_dead_one_is_submitted_again(
    lab: Lab, noisy: Archive, tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    denoise_archive(noisy, tmp_path / "model", tmp_path / "one.zarr", SETTINGS)
    waiting = subprocess.Popen(
        [
            *(sys.executable, "-m", "hpcdeq", *map(str, command(tmp_path))),
            *("--profile", "lab", "--nodes", "3", "--wait"),
        ],
        env=lab.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    jobs = out.with_name("out.zarr.ledger") / "jobs"
    until(lambda: any(jobs.glob("*_submission.sh")), lambda: "the submission", 60)
    (script,) = jobs.glob("*_submission.sh")
    number = script.name.partition("_")[0]
    until(lambda: bool(lab.tasks(number)), lambda: "workers", 60)
    os.kill(lab.tasks(number)[0].pid, signal.SIGKILL)
    said, talk = waiting.communicate(timeout=240)
    assert (waiting.returncode, said.strip()) == (0, str(out)), talk
    assert "submitted again as" in talk
    assert bytes_of(out) == bytes_of(tmp_path / "one.zarr")
    assert not out.with_name("out.zarr.staging").exists()
