import json
import stat
import sys

import pytest
from typer.testing import CliRunner

from hpcdeq.cli import app
from hpcdeq.cluster import probe
from hpcdeq.cluster.probe import Finding

runner = CliRunner()


def command(folder, name, script):
    """Put a command of our own on PATH."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(
        probe.shutil, "which", lambda tool: str(folder / tool) if (folder / tool).exists() else None
    )
    return folder


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_everything_is_looked_at_and_the_core_works_here():
    found = by_name(probe.probe())
    assert {
        "python",
        "hpcdeq",
        "torch",
        "cuda",
        "deepspeed",
        "mpi4py",
        "srun",
        "temporary folder",
    } <= found.keys()
    assert all(f.state == "ok" for f in found.values() if f.core)
    assert all(f.advice for f in found.values() if f.state == "broken")


def test_a_library_that_cannot_be_loaded_is_broken_not_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)  # makes the import fail
    found = probe._library("rasterio", "rasterio", "geo")
    assert found.state == "broken"
    assert "reinstall" in found.advice


def test_a_missing_extra_names_its_install_command():
    found = probe._library("no_such_library", "no-such-library", "geo")
    assert (found.state, found.advice, found.core) == ("missing", 'pip install "hpcdeq[geo]"', False)


def test_a_missing_core_library_is_broken():
    assert probe._library("no_such_library", "no-such-library").state == "broken"


def test_slurm_that_answers(path):
    for tool in ("srun", "sbatch"):
        command(path, tool, "echo slurm 22.05.8")
    command(path, "scontrol", "echo 'Slurmctld(primary) at lab is UP'")
    found = by_name(probe._slurm())
    assert [f.state for f in found.values()] == ["ok", "ok", "ok"]
    assert found["srun"].detail == "slurm 22.05.8"


def test_slurm_that_is_installed_but_not_configured(path):
    command(path, "srun", "echo 'srun: fatal: Could not establish a configuration source' >&2; exit 1")
    found = by_name(probe._slurm())
    assert found["srun"].state == "broken"
    assert "configuration source" in found["srun"].detail
    assert found["sbatch"].state == "missing"


def test_a_controller_that_is_down(path):
    command(path, "scontrol", "echo 'Slurmctld(primary) at lab is DOWN'")
    assert by_name(probe._slurm())["slurm controller"].state == "broken"


def test_a_command_that_hangs_is_given_up(path, monkeypatch):
    monkeypatch.setattr(probe, "ANSWER_SECONDS", 0.2)
    command(path, "srun", "exec sleep 30")
    assert "no answer" in by_name(probe._slurm())["srun"].detail


def test_a_library_that_takes_the_process_down_is_only_broken():
    found = probe._apart("numpy", "mpi", "import os; os.abort()")
    assert found.state == "broken"
    assert "signal 6" in found.detail


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(probe.tempfile, "TemporaryFile", refuse)
    found = probe._folder("temporary folder", tmp_path, core=True)
    assert found.state == "broken"
    assert "Read-only" in found.detail
    assert "TMPDIR" in found.advice


def test_the_filesystem_of_a_folder_is_that_of_its_nearest_mount():
    assert probe._filesystem(probe.Path("/proc/self")).startswith("proc ")


def test_doctor_fails_only_when_a_core_thing_is_broken(monkeypatch):
    monkeypatch.setattr(
        probe, "probe", lambda: iter([Finding("mpi4py", "broken", "no libmpi", "install it")])
    )
    assert runner.invoke(app, ["doctor"]).exit_code == 0
    monkeypatch.setattr(
        probe, "probe", lambda: iter([Finding("torch", "broken", "gone", "reinstall", core=True)])
    )
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "reinstall" in done.stdout


def test_doctor_json_is_json_and_nothing_else(monkeypatch):
    monkeypatch.setattr(probe, "probe", lambda: iter([Finding("zarr", "ok", "3.1.6", core=True)]))
    done = runner.invoke(app, ["doctor", "--json"])
    assert json.loads(done.stdout)[0]["name"] == "zarr"
