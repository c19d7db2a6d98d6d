"""launch/gpu.sh, with short trainings on the CPU: it goes on from its one file, call after call, wherever that is carried to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdeq.archive import open_archive
from hpcdeq.models import load_model, read_card
from tests.conftest import add_scene, smooth_scene

ROOT = Path(__file__).parents[2]
NAMES = ["prior", "du-fast", "deq-fast", "du-full", "deq-full"]
SHORT = [
    "device=cpu",
    "prior:dictionary.iterations=1",
    "data.batch=2",
    "data.val_blocks=2",
    "model.block=16",
    "training.pretrain_steps=2",
    "training.steps=2",
    "du-fast:training.steps=3",
    "training.support_sizes=[]",
    "training.largest_residual=10",
]


def call(train: Path, val: Path, out: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch/gpu.sh"), str(train), str(val), str(out), *SHORT]
    environment = os.environ | {
        "HPCDEQ_PYTHON": sys.executable,
        "HPCDEQ_SECONDS": str(seconds),
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_all_is_trained_in_several_calls_on_several_machines(tmp_path: Path) -> None:
    for name, seeds in (("train", range(2)), ("val", range(5, 6))):
        archive = open_archive(tmp_path / f"{name}.zarr", create=True)
        for seed in seeds:
            add_scene(archive, f"scene{seed}", smooth_scene(seed, 31, 40, 36))
    out = tmp_path / "0"
    out.mkdir()
    (out / "checked.done").touch()  # its checks are tests of their own
    for machine in range(1, 5):
        seconds = 30 if machine == 1 else 400  # the first is cut off, unless the machine is fast
        done = call(tmp_path / "train.zarr", tmp_path / "val.zarr", out, seconds)
        assert done.returncode in (0, 75), done.stderr[-3000:]
        if done.returncode == 0:
            break
        assert "call again" in done.stdout
        carried = tmp_path / str(machine)
        carried.mkdir()
        shutil.move(out / "state.tar", carried)
        shutil.rmtree(out)
        out = carried
    assert done.returncode == 0, "it comes to its end"
    for name in NAMES:
        assert load_model(out / "runs" / name / "model").settings.map == {"fast": "fast", "full": "full"}.get(
            name[-4:], "prior"
        )
        assert "mean" in (out / f"{name}.txt").read_text()
    cards = {name: read_card(out / "runs" / name / "model")["provenance"] for name in NAMES}
    assert cards["prior"]["before"] is None
    assert all(cards[name]["before"] == read_card(Path(name))["provenance"] for name in NAMES[1:]), (
        "it goes on from them"
    )
    steps = {name: cards[name]["config"]["training"]["steps"] for name in NAMES}
    assert steps == {name: 3 if name == "du-fast" else 2 for name in NAMES}, "settings of all, and of one"


def test_it_says_how_it_is_called() -> None:
    done = subprocess.run(["bash", str(ROOT / "launch/gpu.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "bash launch/gpu.sh TRAIN.zarr VAL.zarr OUT" in done.stderr


def test_checks_that_outrun_their_time_are_said_to(tmp_path: Path) -> None:
    done = call(tmp_path / "train.zarr", tmp_path / "val.zarr", tmp_path / "out", 1)
    assert done.returncode == 75, done.stderr
    assert done.stdout.endswith("gpu: out of time; call again to go on\n")
