"""Training of the networks that the paper compares its models with; two of them normalise whole batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hpcdeq.archive import Archive
from hpcdeq.cli import app
from hpcdeq.cluster.group import Team
from hpcdeq.config import TrainConfig, load_train_config
from hpcdeq.errors import ConfigError
from hpcdeq.models import load_model
from hpcdeq.training import checkpoints, loop, objective, train
from tests.unit.training.kills import Killed, kill_at_step, model_bytes

PRIORS = {
    "hsid_cnn": "{kind: hsid_cnn, neighbours: 4, filters: 12}",
    "memnet": "{kind: memnet, filters: 8, memory_blocks: 2, residual_blocks: 2}",
    "qrnn3d_unet": "{kind: qrnn3d_unet, filters: 2}",
}
WITH_BATCH_NORM = ("memnet", "qrnn3d_unet")
SMALL = [
    "model.map=prior",
    "model.block=16",
    "dictionary.atoms=20",
    "dictionary.sparsity=2",
    "dictionary.iterations=2",
    "data.batch=3",
    "data.val_blocks=4",
    "training.pretrain_steps=4",
    "training.steps=3",
    "training.validate_every=3",
    "training.checkpoint_every=2",
    "training.log_every=1",
]


def config(archive: Archive, run: Path, kind: str, *changes: str) -> TrainConfig:
    prior = f"model.prior={PRIORS[kind]}"
    return load_train_config(None, [f"data.train={archive.path}", f"run={run}", prior, *SMALL, *changes])


@pytest.mark.parametrize("kind", PRIORS)
def test_it_learns(archive: Archive, tmp_path: Path, kind: str) -> None:
    changes = ["training.pretrain_steps=15", "training.validate_every=15", "data.batch=4"]
    train(config(archive, tmp_path / "run", kind, *changes))
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    psnr = [record["validation_psnr"] for record in records if "validation_psnr" in record]
    losses = [record["loss"] for record in records if "loss" in record]
    assert psnr[-1] > psnr[0]
    assert sum(losses[10:15]) < sum(losses[:5])


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
@pytest.mark.parametrize("kill_at", [3, 6])
def test_a_run_with_batch_normalisation_that_is_killed_and_continued_gives_the_same_bytes(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kill_at: int
) -> None:
    whole = train(config(archive, tmp_path / "whole", kind))
    cut = config(archive, tmp_path / "cut", kind)
    with monkeypatch.context() as patch:
        kill_at_step(patch, kill_at)
        with pytest.raises(Killed):
            train(cut)
    assert model_bytes(train(cut)) == model_bytes(whole)
    norms = load_model(whole).prior.batch_norms()
    assert norms
    assert all(norm.mean.any() for norm in norms), "running averages were learnt and kept"


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
def test_a_skipped_step_leaves_no_trace_in_running_averages(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever was wrong with its blocks."""
    original = objective.Objective.forward
    learnt_from = 0

    def forward(self: objective.Objective, clean: torch.Tensor, noisy: torch.Tensor, *rest: object) -> object:
        nonlocal learnt_from
        learnt_from += torch.is_grad_enabled()
        broken = torch.is_grad_enabled() and learnt_from == 3
        return original(self, clean, noisy * torch.nan if broken else noisy, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(objective.Objective, "forward", forward)
    folder = train(config(archive, tmp_path / "run", kind))
    assert json.loads((folder / "model.json").read_text())["provenance"]["skipped_steps"] == 1
    assert all(torch.isfinite(x).all() for x in load_model(folder).state_dict().values())


def test_a_step_without_blocks_leaves_no_trace_in_running_averages(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shards of a batch may be unreadable."""
    original = loop.Trainer.step
    averages = []

    def step(
        self: loop.Trainer, clean: torch.Tensor, noisy: torch.Tensor, planned: int, waited: float
    ) -> str:
        if self.at.batches == 1:
            clean, noisy = clean[:0], noisy[:0]
        note = original(self, clean, noisy, planned, waited)
        averages.append(self.model.prior.batch_norms()[0].mean.clone())
        return note

    monkeypatch.setattr(loop.Trainer, "step", step)
    train(config(archive, tmp_path / "run", "memnet"))
    assert torch.equal(averages[1], averages[0])
    assert not torch.equal(averages[2], averages[1])


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ("data.micro_batch=2", r"data.micro_batch=2 would divide it; leave data.micro_batch out"),
        ("training.engine={kind: deepspeed, stage: 1}", "set training.engine.kind=ddp"),
    ],
)
def test_a_batch_that_is_normalised_whole_is_not_divided(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: str, advice: str
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(loop, "process_group", team_of(1))
    with pytest.raises(ConfigError, match=rf"model.prior.kind={kind} normalises all blocks.*{advice}"):
        train(config(archive, run, kind, change))
    assert not run.exists()
    monkeypatch.setattr(loop, "process_group", team_of(2))
    with pytest.raises(ConfigError, match="2 processes would divide it; train it in one process"):
        train(config(archive, run, kind))
    assert not run.exists()


def team_of(size: int):  # type: ignore[no-untyped-def]
    """A stand-in for `process_group`: so many processes, as the first of them sees it."""

    @contextmanager
    def group(*args: object, **kwargs: object) -> Iterator[Team]:
        yield Team(0, size, torch.device("cpu"))

    return group


def test_a_micro_batch_of_a_whole_batch_is_allowed(archive: Archive, tmp_path: Path) -> None:
    whole = train(config(archive, tmp_path / "whole", "memnet"))
    parts = train(config(archive, tmp_path / "parts", "memnet", "data.micro_batch=3"))
    assert model_bytes(parts)[0] == model_bytes(whole)[0]


def test_hsid_cnn_takes_the_same_step_in_parts(archive: Archive, tmp_path: Path) -> None:
    whole = train(config(archive, tmp_path / "whole", "hsid_cnn"))
    parts = train(config(archive, tmp_path / "parts", "hsid_cnn", "data.micro_batch=1"))
    pairs = zip(load_model(parts).parameters(), load_model(whole).parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_network_starts_from_a_trained_one_with_its_running_averages(
    archive: Archive, tmp_path: Path
) -> None:
    first = train(config(archive, tmp_path / "first", "memnet"))
    start = [f"training.start_from={first}", "training.pretrain_steps=0", "training.steps=1"]
    train(config(archive, tmp_path / "second", "memnet", *start))
    begun = checkpoints.load(checkpoints.committed(tmp_path / "second/checkpoints")[0])["model"]
    kept = load_model(first).state_dict()
    assert all(torch.equal(begun[name], value) for name, value in kept.items())


def test_too_few_bands_are_named(archive: Archive, tmp_path: Path) -> None:
    settings = config(archive, tmp_path / "run", "hsid_cnn", "model.prior.neighbours=8")
    with pytest.raises(ConfigError, match=r"got 8 and 7 bands; set model.prior.neighbours to an even number"):
        train(settings)


def test_a_job_of_several_processes_is_refused_before_it_is_queued(archive: Archive, tmp_path: Path) -> None:
    words = [
        f"data.train={archive.path}",
        f"run={tmp_path / 'run'}",
        "model.map=prior",
        "model.prior.kind=memnet",
    ]
    ran = CliRunner().invoke(app, ["submit", "train", *words, "--nodes", "2", "--time", "60"])
    assert isinstance(ran.exception, ConfigError)
    assert "2 processes would divide it; train it in one process" in str(ran.exception)
    assert not (tmp_path / "run").exists()
