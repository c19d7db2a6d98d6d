from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcdeq.archive import Archive
from hpcdeq.cli import main
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
        (
            ["train", "data.train=a", "noise.kind=gausian"],
            2,
            "error: noise.kind: must be one of gaussian, complex (got 'gausian')\n",
        ),
        (
            ["train", "data.train=a", "model.solver.kind=newton"],
            2,
            "error: model.solver.kind: must be one of picard, anderson, broyden (got 'newton')\n",
        ),
        (["degrade", "{archive}", "--out", "{tmp}/o"], 2, "error: give either --sigma S"),
        (["degrade", "{archive}", "--out", "{tmp}/o", "--case", "rain"], 2, "rain"),
        (["degrade", "{archive}", "--out", "{archive}", "--sigma", 50], 2, "is the archive that is read"),
        (["dictionary", "{archive}", "--out", "{tmp}/d", "--atoms", 0], 2, "error: atoms must be"),
        (
            ["dictionary", "{archive}", "--out", "{tmp}/d", "--sparsity", 8],
            2,
            "error: no dictionary can be learnt from these scenes: sparsity must be at most the signals' length 7, got 8",
        ),
        (
            ["train", "data.train={archive}", "run=/proc/no"],
            1,
            "error: /proc/no: No such file or directory; look for a wrong path",
        ),
        (
            ["dictionary", "{archive}", "--out", "{tmp}"],
            2,
            "error: --out {tmp} is a folder; name a file, such as {tmp}/dictionary.safetensors",
        ),
        (
            ["evaluate", "{archive}", "--denoised", "{archive}", "--html", "{tmp}"],
            2,
            "error: --html {tmp} is a folder; name a file, such as {tmp}/report.html",
        ),
        (
            ["evaluate", "{archive}", "--denoised", "{archive}", "--tolerance", 0],
            2,
            "error: --tolerance says how --model is applied; --denoised was denoised before",
        ),
        (["degrade", "{archive}", "--out", "{tmp}/o", "--sigma", 50, "--seed", -1], 2, "--seed"),
        (
            ["denoise", "{archive}", "--model", "du-fast", "--out", "{archive}/in"],
            2,
            "error: {archive}/in would lie inside the archive {archive}; choose a folder outside of it",
        ),
        (
            ["verify", "{archive}"],
            2,
            "error: {archive} is not an archive that hpcdeq denoise wrote: there is no readable {archive}.ledger/job.json; "
            "name the --out of a denoise command",
        ),
        (["denoise", "--no-such-option"], 2, "No such option"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_its_exit_code(
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    code: int,
    line: str,
) -> None:
    places = {"tmp": tmp_path, "archive": archive.path}
    monkeypatch.setattr(sys, "argv", ["hpcdeq", *[str(a).format(**places) for a in arguments]])
    with pytest.raises(SystemExit) as end:  # anything else is what a user would see as a traceback
        main()
    said = capsys.readouterr().err
    assert end.value.code == code, said
    assert line.format(**places) in said


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


def test_a_run_whose_first_command_had_a_wrong_path_may_be_begun_otherwise(tmp_path: Path) -> None:
    from hpcdeq.config import load_train_config
    from hpcdeq.errors import ConfigError
    from hpcdeq.training.start import open_run

    first, second = (load_train_config(None, [f"data.train={a}", f"run={tmp_path}"]) for a in ("a", "b"))
    open_run(first)
    (tmp_path / "jobs").mkdir()  # as of one that was submitted
    open_run(second)
    (tmp_path / "dictionary.safetensors").touch()
    open_run(second)
    with pytest.raises(ConfigError, match=r"is a run with another configuration \(data.train was b, is a\)"):
        open_run(first)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("data.train={tmp}/no.zarr", "error: no archive at {tmp}/no.zarr"),
        ("data.split={tmp}/no.json", "error: "),
        ("training.start_from={tmp}/no", "error: no model.json in {tmp}/no"),
        ("training.start_from=du-fast", "error: training.start_from: "),  # 31 bands
        ("dictionary={tmp}/no.safetensors", "error: "),
        ("model.support.size=7", "error: model: support.size must be below the number of bands (7)"),
    ],
)
def test_a_training_that_could_not_begin_is_not_submitted(
    archive: Archive, tmp_path: Path, change: str, line: str
) -> None:
    from hpcdeq.models import save_dictionary

    save_dictionary(torch.nn.functional.normalize(torch.randn(7, 20), dim=0), tmp_path / "d.safetensors", {})
    words = [f"data.train={archive.path}", f"run={tmp_path}/r", f"dictionary={tmp_path}/d.safetensors"]
    done = run("submit", "train", *words, change.format(tmp=tmp_path), "--time", "5")
    assert line.format(tmp=tmp_path) in done.stderr
    assert done.returncode in (1, 2)
    assert "SLURM" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_the_status_of_a_training(tmp_path: Path) -> None:
    from hpcdeq.config import load_train_config
    from hpcdeq.training.start import open_run

    open_run(load_train_config(None, ["data.train=a", f"run={tmp_path}"]))
    assert run("status", tmp_path).stdout == "no step is recorded yet\n"
    assert '"finished": false' in run("status", tmp_path, "--json").stdout
    assert "is a training run; leave it out" in run("status", tmp_path, "--html", "p.html").stderr


def test_the_folder_of_a_run_in_place_of_its_model(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "model.json").touch()
    done = run("denoise", archive.path, "--model", tmp_path / "run", "--out", tmp_path / "o")
    assert (
        f"in {tmp_path}/run; it is the folder of a run, whose model is {tmp_path}/run/model\n" in done.stderr
    )
