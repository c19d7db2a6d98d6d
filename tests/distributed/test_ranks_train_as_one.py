"""`hpcdeq train` in several real processes (gloo): the numbers of one process, and an end for all when one is lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hpcdeq.archive import open_archive
from hpcdeq.training import checkpoints
from tests.conftest import add_scene, alone, free_port, smooth_scene

SETTINGS = [
    "model.block=24",
    "model.prior.layers=2",
    "model.prior.filters=6",
    "model.support.size=3",
    "dictionary.atoms=20",
    "dictionary.sparsity=2",
    "dictionary.iterations=2",
    "data.batch=4",
    "data.val_blocks=5",
    "training.support_sizes=[3,4]",
    "training.pretrain_steps=6",
    "training.steps=12",
    "training.validate_every=6",
    "training.checkpoint_every=3",
    "training.log_every=1",
]
DEADLINE = 30.0  # seconds in which all processes end after one has died


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = open_archive(tmp_path_factory.mktemp("scenes") / "clean.zarr", create=True)
    for i in range(3):
        add_scene(archive, f"scene{i}", smooth_scene(i, 7, 150, 150))
    return archive.path


def begin(
    world: int, clean: Path, run: Path, *settings: str, base: Sequence[str] = SETTINGS
) -> list[subprocess.Popen[str]]:
    """Start ``hpcdeq train`` in some processes, as torchrun does, but each with a stderr of its own."""
    port = str(free_port())
    command = [
        sys.executable,
        "-m",
        "hpcdeq",
        "train",
        f"data.train={clean}",
        f"run={run}",
        *base,
        *settings,
    ]
    return [
        subprocess.Popen(
            command,
            env=alone()
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def end(processes: list[subprocess.Popen[str]], seconds: float = 300) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    ended = []
    for process in processes:
        out, said = process.communicate(timeout=seconds)
        ended.append((process.returncode, out, said))
    return ended


def train(
    world: int, clean: Path, run: Path, *settings: str, base: Sequence[str] = SETTINGS
) -> dict[str, Tensor]:
    """Weights of a run."""
    ended = end(begin(world, clean, run, *settings, base=base))
    assert [code for code, _, _ in ended] == [0] * world, ended
    assert ended[0][1] == f"{run / 'model'}\n"
    assert all(out == said == "" for _, out, said in ended[1:]), "the first process alone speaks"
    return load_file(run / "model/model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of two runs' weights, relative to the largest weight of each tensor."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).abs().max() / a[k].abs().max()).item() for k in a)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


# A map that contracts, solved to the end: otherwise the last bits of the weights decide how many iterations a block gets, and
# small differences grow (1e-3 of the loss after 12 steps with the default prior at its beginning).
DEQ_FAST = [
    "model.b=1",
    "model.prior.norm=conv",
    "model.solver.tolerance=1e-5",
    "training.jacobian_weight=0.1",
]


def test_any_number_of_processes_learns_the_same(clean: Path, tmp_path: Path) -> None:
    one = train(1, clean, tmp_path / "1", *DEQ_FAST)
    for world in (2, 3):
        many = train(world, clean, tmp_path / str(world), *DEQ_FAST)
        # Sums over blocks are rounded in another order, and Adam divides small gradients by their size.
        assert distance(one, many) < 1e-4
        first, other = losses(tmp_path / "1"), losses(tmp_path / str(world))
        torch.testing.assert_close(torch.tensor(other), torch.tensor(first), rtol=1e-6, atol=0)


def test_deepspeed_goes_on_to_the_same_bytes(clean: Path, tmp_path: Path) -> None:
    zero = "training.engine={kind: deepspeed, stage: 1}"
    # With three, gradients that lie elsewhere in what is exchanged would be added up in another order.
    train(3, clean, tmp_path / "whole", zero, *DEQ_FAST)
    train(3, clean, tmp_path / "cut", zero, "training.steps=5", *DEQ_FAST)
    train(3, clean, tmp_path / "cut", zero, *DEQ_FAST)
    model = "model/model.safetensors"
    assert (tmp_path / "cut" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_micro_batches_and_more_processes_than_blocks_learn_the_same(clean: Path, tmp_path: Path) -> None:
    # Two processes have 3 and 2 of 5 blocks, which make 2 + 1 and 2 + 0; one of three has none of 2.
    for world, batch, settings in ((2, 5, ["data.micro_batch=2"]), (3, 2, [])):
        one = train(1, clean, tmp_path / f"one{batch}", f"data.batch={batch}", *DEQ_FAST)
        many = train(world, clean, tmp_path / f"many{batch}", f"data.batch={batch}", *settings, *DEQ_FAST)
        assert distance(one, many) < 1e-4


def test_the_number_of_processes_may_change(clean: Path, tmp_path: Path) -> None:
    one = train(1, clean, tmp_path / "1", *DEQ_FAST)
    for world, steps in ((1, 2), (2, 5), (3, 9), (1, 12)):
        many = train(world, clean, tmp_path / "many", f"training.steps={steps}", *DEQ_FAST)
    assert distance(one, many) < 1e-4
    assert len(losses(tmp_path / "many")) == len(losses(tmp_path / "1"))


def test_three_processes_that_go_on_have_the_bytes_of_an_undisturbed_run(clean: Path, tmp_path: Path) -> None:
    """Sums of three numbers depend on their order, which must be that of an undisturbed run in a continued one's first step too."""
    train(3, clean, tmp_path / "whole")
    for steps in (2, 7, 12):
        train(3, clean, tmp_path / "cut", f"training.steps={steps}")
    last = [
        run / "checkpoints" / checkpoints.name_of(1, 0, 12) for run in (tmp_path / "whole", tmp_path / "cut")
    ]
    whole, cut = (checkpoints.load(checkpoint)["model"] for checkpoint in last)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_killed_process_ends_all_and_the_run_goes_on_to_the_same_bytes(clean: Path, tmp_path: Path) -> None:
    train(2, clean, tmp_path / "whole")
    rng = random.Random(0)
    run = tmp_path / "cut"
    for killed in (1, 0, 1, 0):
        processes = begin(2, clean, run)
        speaker = processes[0].stderr
        assert speaker is not None
        for line in speaker:
            if "validation" in line:  # training has begun, or gone on
                break
        else:
            break  # it had ended
        time.sleep(rng.uniform(0, 0.3))
        processes[killed].kill()
        killed_at = time.monotonic()
        ended = end(processes, DEADLINE)
        assert time.monotonic() - killed_at < DEADLINE
        if ended[1 - killed][0] == 0:
            continue
        assert ended[killed][0] == -signal.SIGKILL
        assert "ends, as another process failed or vanished" in ended[1 - killed][2].splitlines()[-1]
    train(2, clean, run)
    for name in ("model.safetensors", "model.json"):
        assert (run / "model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_all_processes_stop_after_the_same_step_when_one_is_asked_to(clean: Path, tmp_path: Path) -> None:
    train(2, clean, tmp_path / "whole")
    processes = begin(2, clean, tmp_path / "cut")
    assert processes[0].stderr is not None
    for line in processes[0].stderr:
        if "validation" in line:
            break
    processes[1].send_signal(signal.SIGUSR2)
    ended = end(processes)
    assert [code for code, _, _ in ended] == [75, 75], ended
    lines = [said.splitlines()[-1] for _, _, said in ended]
    assert "SIGUSR2 came: stopped after step" in lines[1]
    assert lines[0].split("came")[1] == lines[1].split("came")[1]
    train(2, clean, tmp_path / "cut")
    model = "model/model.safetensors"
    assert (tmp_path / "cut" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


@pytest.mark.parametrize("broken", ["data.train=nowhere.zarr", "dictionary.atoms=100000000"])
def test_an_error_of_the_first_process_is_the_last_line_of_all(
    clean: Path, tmp_path: Path, broken: str
) -> None:
    ended = end(begin(2, clean, tmp_path / "run", broken), DEADLINE)
    codes = {code for code, _, _ in ended}
    assert len(codes) == 1
    assert codes != {0}
    assert len({said.splitlines()[-1] for _, _, said in ended}) == 1, ended


def test_a_damaged_chunk_ends_all_and_is_named(clean: Path, tmp_path: Path) -> None:
    archive = open_archive(tmp_path / "bad.zarr", create=True)
    for i in range(3):
        add_scene(archive, f"scene{i}", smooth_scene(i, 7, 150, 150))
    scene = archive["scene1"]
    file = scene.shard_path(next(scene.shards()))
    file.write_bytes(file.read_bytes()[:-100])
    ended = end(begin(2, archive.path, tmp_path / "run"), 60)
    assert all(code == 1 for code, _, _ in ended), ended
    last = [said.splitlines()[-1] for _, _, said in ended]
    assert any("scene1: cannot read rows" in line for line in last)
    train(2, archive.path, tmp_path / "skipped", "data.on_bad_chunk=skip")
    assert "scene1: cannot read rows" in (tmp_path / "skipped/bad_chunks.txt").read_text()
