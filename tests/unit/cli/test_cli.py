from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcdeq.archive import Archive
from tests.conftest import add_scene, smooth_scene

HEAVY = ("torch", "numpy", "zarr", "dask", "h5py", "scipy", "pydantic", "omegaconf", "matplotlib")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcdeq", *[str(a) for a in arguments]]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hpcdeq.cli import app\n"
        "try: app(['--help'])\n"
        f"except SystemExit: sys.exit(f'imported: {{heavy}}' if (heavy := set({HEAVY}) & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in (
        "ingest",
        "info",
        "validate",
        "dictionary",
        "train",
        "degrade",
        "denoise",
        "evaluate",
        "demo",
        "doctor",
    ):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["denoise", "{tmp}/no.zarr", "--model", "m", "--out", "o"],
            1,
            "error: no archive at {tmp}/no.zarr; make one with: hpcdeq ingest",
        ),
        (
            ["denoise", "{archive}", "--model", "{tmp}/m", "--out", "{tmp}/o"],
            1,
            "error: no model.json in {tmp}/m",
        ),
        (
            ["train", "data.train={archive}", "run={tmp}/r", "training.step=3"],
            2,
            "error: training.step: unknown key; did you mean 'steps'?",
        ),
        (["train"], 2, "error: data.train is not set"),
        (["degrade", "{archive}", "--out", "{tmp}/o"], 2, "error: give either --sigma S"),
        (["degrade", "{archive}", "--out", "{tmp}/o", "--case", "rain"], 2, "rain"),
        (["degrade", "{archive}", "--out", "{archive}", "--sigma", 50], 2, "is the archive that is read"),
        (["dictionary", "{archive}", "--out", "{tmp}/d", "--atoms", 0], 2, "error: atoms must be"),
        (
            ["dictionary", "{archive}", "--out", "{tmp}/d", "--sparsity", 8],
            2,
            "error: no dictionary can be learnt from these scenes: sparsity must be at most the signals' length 7, got 8",
        ),
        (["train", "data.train={archive}", "run=/proc/no"], 1, "error: [Errno"),
        (["denoise", "--no-such-option"], 2, "No such option"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_its_exit_code(
    archive: Archive, tmp_path: Path, arguments: list[object], code: int, line: str
) -> None:
    places = {"tmp": tmp_path, "archive": archive.path}
    done = run(*[str(a).format(**places) for a in arguments])
    assert done.returncode == code, done.stderr
    assert line.format(**places) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dictionary_of_scenes_of_two_sensors_is_refused(archive: Archive, tmp_path: Path) -> None:
    add_scene(archive, "other", smooth_scene(3, 5, 70, 90))
    done = run("dictionary", archive.path, "--out", tmp_path / "d")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: all scenes of a dictionary must have one band count; found {5: 'other', 7: "
    )


def test_degrade_names_a_damaged_scene_and_finishes_the_others(archive: Archive, tmp_path: Path) -> None:
    file = archive["scene1"].shard_path(next(archive["scene1"].shards()))
    file.write_bytes(file.read_bytes()[:100])
    done = run("degrade", archive.path, "--out", tmp_path / "o", "--sigma", 50)
    assert done.returncode == 3
    assert "error: not degraded: scene1" in done.stderr
    assert Archive(tmp_path / "o").names() == ["scene0", "scene2"]
    again = run("degrade", archive.path, "--out", tmp_path / "o", "--sigma", 30)
    assert "with other noise or from another scene" in again.stderr
