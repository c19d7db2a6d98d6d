from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from hpcdeq.archive import Archive
from hpcdeq.cluster.group import Team
from hpcdeq.config import TrainConfig, load_train_config
from hpcdeq.errors import ConfigError, PreemptedError, TrainingError
from hpcdeq.metrics import mpsnr
from hpcdeq.models import SparseDenoiser, load_model
from hpcdeq.training import checkpoints, data, export_checkpoint, objective, train, validation
from hpcdeq.training.average import average_of
from tests.conftest import add_scene, smooth_scene
from tests.unit.training.kills import Killed, kill_at_step, model_bytes

SMALL = [
    "model.block=24",
    "model.prior.layers=2",
    "model.prior.filters=6",
    "model.support.size=3",
    "model.solver.iterations=4",
    "model.adjoint.solver.iterations=4",
    "dictionary.atoms=20",
    "dictionary.sparsity=2",
    "dictionary.iterations=2",
    "data.batch=3",
    "data.val_blocks=4",
    "training.pretrain_steps=7",
    "training.steps=8",
    "training.validate_every=4",
    "training.checkpoint_every=3",
    "training.log_every=1",
    "training.support_sizes=[]",
    "training.largest_residual=10",  # four iterations solve nothing well
]


def config(archive: Archive, run: Path, *changes: str) -> TrainConfig:
    return load_train_config(None, [f"data.train={archive.path}", f"run={run}", *SMALL, *changes])


@pytest.mark.parametrize("kill_at", range(1, 15, 2))
def test_a_run_that_is_killed_and_continued_gives_the_same_bytes(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    penalty = f"training.jacobian_weight={0.1 if kill_at == 9 else 0}"  # its probe is random too
    whole = train(config(archive, tmp_path / "whole", penalty))
    cut = config(archive, tmp_path / "cut", penalty)
    kill_at_step(monkeypatch, kill_at)
    with pytest.raises(Killed) as caught:
        train(cut)
    # It holds the frames of the run until the process ends, where threads can be waited for no more.
    assert caught.tb
    assert not [t for t in threading.enumerate() if t.name == "hpcdeq-stream"]
    assert model_bytes(train(cut)) == model_bytes(whole)
    assert model_bytes(train(cut)) == model_bytes(whole)


def test_the_record_of_a_continued_run_has_every_step_once(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = config(archive, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(SparseDenoiser, "forward", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            train(cut)
    train(cut)
    assert not [t for t in threading.enumerate() if t.name == "hpcdeq-stream" and t.is_alive()]
    lines = [json.loads(line) for line in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    steps = [(line["phase"], line["step"]) for line in lines if "loss" in line]
    assert steps == [("pretrain", i) for i in range(1, 8)] + [("train", i) for i in range(1, 9)]
    assert {"forward_residual", "backward_residual", "b", "data_seconds"} <= lines[-2].keys()


def test_a_validation_whose_checkpoint_was_not_written_is_in_the_record_once(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase begins with one, before its first batch."""

    def validated(run: Path) -> list[tuple[str, int, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            (line["phase"], line["step"], line["validation_psnr"]) for line in lines if "loss" not in line
        ]

    train(config(archive, tmp_path / "whole"))
    original = checkpoints.commit
    for phase in (0, 1):

        def commit(attempt: Path, name: str, state: dict[str, object], phase: int = phase) -> None:
            if name == checkpoints.name_of(phase, 0, 0):
                raise Killed
            original(attempt, name, state)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "commit", commit)
            with pytest.raises(Killed):
                train(config(archive, tmp_path / "cut"))
    train(config(archive, tmp_path / "cut"))
    assert validated(tmp_path / "cut") == validated(tmp_path / "whole")


def break_steps(monkeypatch: pytest.MonkeyPatch, bad: range) -> None:
    """Make the loss of these steps, counted from 1, not a number."""
    calls = itertools.count(1)
    original = objective.F.mse_loss

    def loss(estimate: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        in_a_step = torch.is_grad_enabled()  # not in a validation
        return original(estimate, clean) * (torch.nan if in_a_step and next(calls) in bad else 1.0)

    monkeypatch.setattr(objective.F, "mse_loss", loss)


def test_steps_that_are_not_finite_are_skipped_and_counted(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, range(3, 5))
    folder = train(config(archive, tmp_path / "run"))
    card = json.loads((folder / "model.json").read_text())
    assert card["provenance"]["skipped_steps"] == 2
    assert card["provenance"]["rollbacks"] == 0
    assert all(torch.isfinite(p).all() for p in load_model(folder).parameters())


def lr_factors(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr_factor"] for line in lines if "loss" in line]


def test_several_bad_steps_in_a_row_reload_the_last_checkpoint_with_a_smaller_rate(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, range(11, 16))
    run = tmp_path / "run"
    folder = train(config(archive, run))
    card = json.loads((folder / "model.json").read_text())
    assert card["provenance"]["rollbacks"] == 1
    state = checkpoints.load(checkpoints.latest(run / "checkpoints") or run)
    assert state["position"]["step"] == 8
    assert lr_factors(run)[-3:] == [1.0, 0.5, 0.5]


def test_the_cosine_schedule_rises_then_falls_to_0_in_each_phase(archive: Archive, tmp_path: Path) -> None:
    long = ["training.pretrain_steps=0", "training.steps=40", "training.validate_every=40"]
    train(config(archive, tmp_path / "run", "training.schedule=cosine", *long))
    factors = lr_factors(tmp_path / "run")
    assert factors[:3] == pytest.approx([0.0, 0.5 * 0.9985, 0.9938], abs=1e-3)
    assert factors[20] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[2:]))
    assert factors[-1] < 0.01


@pytest.mark.parametrize("kill_at", [3, 11])
def test_an_average_of_the_weights_is_validated_written_and_continued(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    averaged = ["training.ema=0.5", "training.schedule=cosine", "model.prior.noise_map=true"]
    whole = train(config(archive, tmp_path / "whole", *averaged))
    cut = config(archive, tmp_path / "cut", *averaged)
    with monkeypatch.context() as patch:
        kill_at_step(patch, kill_at)
        with pytest.raises(Killed):
            train(cut)
    assert model_bytes(train(cut)) == model_bytes(whole)
    plain = train(config(archive, tmp_path / "plain", *averaged[1:]))
    assert model_bytes(plain)[0] != model_bytes(whole)[0]


def test_the_average_follows_the_weights_by_its_decay() -> None:
    from torch import nn

    model = nn.Linear(1, 1, bias=False)
    average = average_of(model, decay=0.5)  # type: ignore[arg-type]
    expected = None
    for count, value in enumerate([1.0, 5.0, -3.0, 2.0, 8.0, 1.0, 4.0, 7.0, 9.0]):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        keep = min(0.5, (1 + count) / (10 + count))
        expected = value if expected is None else keep * expected + (1 - keep) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_an_equilibrium_model_that_leaves_convergence_is_brought_back(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that makes the map expand: the solves fail, the steps are skipped, the rate is halved until they do not."""
    wild = [
        "training.lr=0.3",
        "training.largest_residual=0.1",
        "training.lr_scalars_factor=1",
        "training.steps=60",
        "training.validate_every=60",
        "model.solver.iterations=15",
        "model.prior.norm=none",
        "training.checkpoint_every=1000",
    ]
    card = json.loads((train(config(archive, tmp_path / "run", *wild)) / "model.json").read_text())
    assert card["provenance"]["skipped_steps"] >= 5
    assert 1 <= card["provenance"]["rollbacks"] <= 5
    assert "not finite or not solved: back to" in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if "forward_residual" in r][-1]
    assert last["forward_residual"] < 0.1
    assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "run/model").parameters())


def test_the_jacobian_penalty_makes_the_map_contract(archive: Archive, tmp_path: Path) -> None:
    """And the monitor shows it: the spectral radius at the end is smaller than without it."""
    radius = {}
    for weight in (0, 100):
        settings = [
            "training.steps=15",
            "training.validate_every=15",
            "training.lr=3e-3",
            "model.prior.norm=none",
        ]
        run = tmp_path / str(weight)
        train(config(archive, run, *settings, "model.block=16", f"training.jacobian_weight={weight}"))
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        radius[weight] = [r["spectral_radius"] for r in records if "spectral_radius" in r]
        penalties = [r["jacobian"] for r in records if "jacobian" in r]
        assert len(penalties) == (15 if weight else 0)
        assert {"validation_residual", "b"} <= records[-1].keys()
    assert radius[0][0] == radius[100][0]
    assert radius[100][-1] < radius[0][-1]
    assert penalties[-1] < penalties[0]


def test_the_number_of_atoms_is_the_best_on_the_validation_blocks(archive: Archive, tmp_path: Path) -> None:
    sizes = "training.support_sizes=[1,2,5,99]"  # 99: more than there are bands, left out
    settings = config(archive, tmp_path / "run", sizes)
    card = json.loads((train(settings) / "model.json").read_text())
    psnr = {int(n): value for n, value in card["provenance"]["validation_psnr_by_support_size"].items()}
    assert sorted(psnr) == [1, 2, 3, 5]
    assert psnr[3] == pytest.approx(card["provenance"]["validation_psnr"])
    assert card["settings"]["support"]["size"] == max(psnr, key=psnr.__getitem__)
    model = load_model(tmp_path / "run/model")
    scene, denoised = [], []
    for clean, noisy in data.validation_batches(settings, data.split(settings)[1]):
        with torch.inference_mode():
            denoised += model(noisy).estimate.unbind()
        scene += clean.unbind()
    again = mpsnr(torch.cat(scene, dim=1), torch.cat(denoised, dim=1))
    assert again == pytest.approx(max(psnr.values()), abs=1e-4)


@pytest.mark.parametrize("cost", [0.0, 1e9])
def test_a_model_is_solved_as_loosely_as_costs_nothing(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    monkeypatch.setattr(validation, "_COST_OF_TOLERANCE", cost)
    settings = config(
        archive,
        tmp_path / "run",
        "model.solver.tolerance=1e-6",
        "model.solver.iterations=30",
        "training.tolerances=[0.5,1e-9,1e-2]",  # 1e-9 is no looser one
    )
    card = json.loads((train(settings) / "model.json").read_text())
    psnr = {float(t): value for t, value in card["provenance"]["validation_psnr_by_tolerance"].items()}
    assert sorted(psnr) == [1e-6, 1e-2, 0.5]
    assert psnr[1e-6] == pytest.approx(card["provenance"]["validation_psnr"])
    best = max(t for t in psnr if psnr[t] >= psnr[1e-6] - cost)
    assert load_model(tmp_path / "run/model").settings.solver.tolerance == best
    assert best == 0.5 or cost == 0.0


def test_a_length_may_be_given_in_epochs(archive: Archive, tmp_path: Path) -> None:
    settings = config(archive, tmp_path / "run", "training.pretrain_steps=1 epoch", "training.steps=2 epochs")
    train(settings)
    state = checkpoints.load(checkpoints.latest(tmp_path / "run/checkpoints") or tmp_path)
    batches = data.training_stream(
        settings, data.split(settings)[0], Team(0, 1, torch.device("cpu"))
    ).batches_per_epoch
    assert state["position"]["step"] == 2 * batches
    assert state["position"]["batches"] == 3 * batches


def test_training_that_never_recovers_ends_with_advice(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective.F, "mse_loss", lambda a, b: (a - b).sum() * torch.nan)
    with pytest.raises(TrainingError, match=r"after 5 roll-backs.*model.prior.norm=kernel"):
        train(config(archive, tmp_path / "run"))


def test_another_configuration_in_the_same_folder_is_refused_but_more_steps_are_not(
    archive: Archive, tmp_path: Path
) -> None:
    train(config(archive, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"another configuration \(seed was 0, is 3\)"):
        train(config(archive, tmp_path / "run", "seed=3"))
    folder = train(config(archive, tmp_path / "run", "training.steps=12"))
    assert json.loads((folder / "model.json").read_text())["provenance"]["config"]["training"]["steps"] == 12


def test_a_prior_alone_is_a_model_and_a_start_for_others(archive: Archive, tmp_path: Path) -> None:
    prior = train(config(archive, tmp_path / "prior", "model.map=prior", "training.steps=0"))
    assert load_model(prior).settings.map == "prior"
    start = f"training.start_from={prior}"
    folder = train(config(archive, tmp_path / "deq", start, "training.pretrain_steps=0"))
    assert load_model(folder).settings.map == "fast"
    with pytest.raises(ConfigError, match="has another architecture"):
        train(config(archive, tmp_path / "other", start, "model.prior.filters=5"))


@pytest.mark.parametrize(("taken", "expected"), [("true", 3.0), ("false", 20.0)])
def test_a_model_begins_with_the_penalty_of_another_unless_told_not_to(
    archive: Archive, tmp_path: Path, taken: str, expected: float
) -> None:
    alone = ("training.pretrain_steps=0", "training.steps=0")
    first = train(config(archive, tmp_path / "first", "model.b=3", *alone))
    start = (f"training.start_from={first}", f"training.start_scalars={taken}")
    second = train(config(archive, tmp_path / "second", *start, *alone))
    assert load_model(second).b.item() == pytest.approx(expected)


def test_only_the_latest_and_the_best_checkpoints_are_kept(archive: Archive, tmp_path: Path) -> None:
    train(config(archive, tmp_path / "run", "training.keep=1"))
    assert 1 <= len(checkpoints.committed(tmp_path / "run/checkpoints")) <= 2


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_loses_no_step(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = train(config(archive, tmp_path / "whole"))
    cut = config(archive, tmp_path / "cut")
    before = signal.getsignal(number)
    original = torch.optim.Adam.step
    steps = 0

    def ask(*args: object, **kwargs: object) -> object:
        nonlocal steps
        steps += 1
        if steps in (2, 9, 10):  # 9: where a checkpoint is due too
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.Adam, "step", ask)
    for stopped in ("step 2 of pretrain", "step 2 of train", "step 3 of train"):
        with pytest.raises(PreemptedError, match=f"{number.name} came: stopped after {stopped}") as caught:
            train(cut)
        assert caught.value.exit_code == 75
        assert signal.getsignal(number) == before
    folder = train(cut)
    assert steps == 15, "no step was taken twice"
    assert model_bytes(folder)[0] == model_bytes(whole)[0]


def test_any_checkpoint_becomes_a_model_file(archive: Archive, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = train(config(archive, run, "training.keep=9"))
    name = export_checkpoint(run, tmp_path / "best")
    assert model_bytes(tmp_path / "best")[0] == model_bytes(folder)[0], (
        "the best one, as train itself writes it"
    )
    card, own = (json.loads((f / "model.json").read_text()) for f in (tmp_path / "best", folder))
    assert card["provenance"]["checkpoint"] == own["provenance"]["checkpoint"] == name
    assert card["provenance"]["scenes"] == own["provenance"]["scenes"]
    assert card["provenance"]["validation_psnr"] == own["provenance"]["validation_psnr"]
    names = [path.name for path in checkpoints.committed(run / "checkpoints")]
    for other in names:
        assert export_checkpoint(run, tmp_path / "any", other) == other
        state = checkpoints.load(run / "checkpoints" / other)["model"]
        assert torch.equal(load_model(tmp_path / "any").log_b, state["log_b"])
    with pytest.raises(ConfigError, match=f"has no checkpoint 'x'; there are: {names[0]}"):
        export_checkpoint(run, tmp_path / "any", "x")
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        export_checkpoint(tmp_path, tmp_path / "any")


def test_band_counts_must_agree(archive: Archive, tmp_path: Path) -> None:
    add_scene(archive, "other", smooth_scene(0, 5, 70, 70))
    with pytest.raises(ConfigError, match="one band count"):
        train(config(archive, tmp_path / "run"))
