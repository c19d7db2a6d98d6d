"""Bulk denoising that is disturbed writes what an undisturbed process writes; benchmarks/bulk_chaos.py disturbs it more often."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.bulk_chaos import Stage, make_work
from tests.slurm.lab import Lab


@pytest.mark.slow
def test_a_disturbed_archive_is_that_of_an_undisturbed_process(lab: Lab, tmp_path: Path) -> None:
    work = make_work(
        tmp_path / "work", [], 0, [(520, 390), (130, 300)] * 6
    )  # enough to be at it still when the last one comes
    stage = Stage(lab, tmp_path, work, pause=3)
    for kinds in (["requeue", "kill"], ["limit"], ["submitter"]):
        run = stage.disturb(kinds, seed=kinds[0])
        assert run.problems == []
        # A job that was queued again is there to be killed, however busy the machine is.
        assert "submitter" in kinds or all(strike.hit for strike in run.strikes), "they came in time"
