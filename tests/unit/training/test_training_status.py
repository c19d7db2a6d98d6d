from __future__ import annotations

from pathlib import Path

import pytest

from hpcdeq.archive import Archive
from hpcdeq.training import train
from hpcdeq.training.start import open_run
from hpcdeq.training.status import is_training_run, training_status
from tests.unit.training.kills import Killed, kill_at_step
from tests.unit.training.test_training import config


def test_a_run_is_told_as_its_record_has_it(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = config(archive, tmp_path / "run")
    assert not is_training_run(cut.run)
    open_run(cut)
    assert is_training_run(cut.run)
    assert str(training_status(cut.run)) == "no step is recorded yet"
    with monkeypatch.context() as patch:
        kill_at_step(patch, 13)  # of both phases
        with pytest.raises(Killed):
            train(cut)
    now = training_status(cut.run)
    assert (now.phase, now.step, now.steps, now.finished) == ("train", 5, 8, False)
    assert now.validation_step == 4
    assert now.best_psnr is not None
    assert now.validation_psnr is not None
    assert now.best_psnr >= now.validation_psnr
    assert now.step_seconds is not None
    assert now.seconds_left == pytest.approx(3 * now.step_seconds)
    assert str(now).startswith("train step 5 of 8, loss ")
    train(cut)
    now = training_status(cut.run)
    assert (now.step, now.finished, now.seconds_left) == (8, True, 0.0)
    assert str(now).endswith(", finished")


def test_a_run_that_is_given_more_steps_goes_on(archive: Archive, tmp_path: Path) -> None:
    train(config(archive, tmp_path / "run"))
    open_run(config(archive, tmp_path / "run", "training.steps=20"))
    now = training_status(tmp_path / "run")
    assert (now.step, now.steps, now.finished) == (8, 20, False)


def test_what_a_kill_has_cut_of_the_record_is_left_out(archive: Archive, tmp_path: Path) -> None:
    train(config(archive, tmp_path / "run", "training.steps=2 epochs"))
    record = tmp_path / "run" / "metrics.jsonl"
    record.write_text(record.read_text()[:-7])
    now = training_status(tmp_path / "run")
    assert now.phase == "train"
    assert now.steps is None


def test_a_prior_alone_is_finished_after_its_only_phase(archive: Archive, tmp_path: Path) -> None:
    train(config(archive, tmp_path / "run", "model.map=prior", "training.steps=0"))
    now = training_status(tmp_path / "run")
    assert (now.phase, now.step, now.finished) == ("pretrain", 7, True)
