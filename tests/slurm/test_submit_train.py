"""`hpcdeq submit train` on three nodes of a real SLURM: the losses and weights of one process, by DDP and by DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.slurm.chaos import make_archive
from tests.slurm.lab import ROOT, Lab

SETTINGS = [
    "device=cpu",
    "model.block=24",
    "model.prior.layers=3",
    "model.prior.filters=16",
    "model.prior.norm=conv",
    "model.b=1",
    "model.support.size=3",
    "dictionary.atoms=40",
    "dictionary.sparsity=2",
    "dictionary.iterations=2",
    "data.batch=6",
    "data.val_blocks=6",
    "training.pretrain_steps=10",
    "training.steps=20",
    "training.support_sizes=[3,4]",
    "training.log_every=1",
]
# A map that contracts, solved to the end: otherwise last bits decide how many iterations a block gets.
MODELS = {
    "deq-fast": ["model.solver.tolerance=1e-5"],
    "du-full": [
        "model.map=full",
        "model.adjoint={kind: unrolled}",
        "model.solver={kind: picard, iterations: 5, tolerance: 0}",
    ],
}
ENGINES = {"ddp": "training.engine={kind: ddp}", "zero1": "training.engine={kind: deepspeed, stage: 1}"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real scenes if there are any, otherwise made ones."""
    data = os.environ.get("HPCDEQ_DATA")
    return make_archive(tmp_path_factory.mktemp("scenes"), Path(data) / "cave/train" if data else None)


def losses(run: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if "loss" in line])


@pytest.mark.slow
def test_three_nodes_learn_what_one_process_does(lab: Lab, archive: Path, tmp_path: Path) -> None:
    def submit(model: str, name: str, *options: str) -> str:
        command = [sys.executable, "-m", "hpcdeq", "submit", "train", f"run={tmp_path / model / name}"]
        settings = [f"data.train={archive}", *SETTINGS, *MODELS[model]]
        done = subprocess.run(
            [*command, *settings, *options],
            env=lab.environ | {"OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    jobs = [
        submit(model, name, engine, "--profile=lab", "--nodes=3")
        for model in MODELS
        for name, engine in ENGINES.items()
    ]
    for model in MODELS:
        submit(model, "alone", "--cluster=debug")
    for job in jobs:
        lab.wait(job, "COMPLETED", seconds=180)
    for model in MODELS:
        alone = tmp_path / model / "alone"
        one = load_file(alone / "model/model.safetensors")
        assert len(losses(alone)) == 30
        for name in ENGINES:
            many = load_file(tmp_path / model / name / "model/model.safetensors")
            assert many.keys() == one.keys()
            for key, expected in one.items():
                assert (many[key] - expected).abs().max() < 1e-4 * expected.abs().max(), f"{name}: {key}"
            # A third of each batch is summed by itself, and the thirds are added up.
            torch.testing.assert_close(losses(tmp_path / model / name), losses(alone), rtol=2e-6, atol=0)
