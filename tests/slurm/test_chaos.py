"""Training jobs that are disturbed leave what undisturbed ones leave: one of each kind; benchmarks/chaos.py does many."""

from __future__ import annotations

import pytest

from tests.slurm.chaos import Stage, make_archive
from tests.slurm.lab import Lab


@pytest.fixture(scope="module")
def stage(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = tmp_path_factory.mktemp("chaos")
    return Stage(lab, folder, make_archive(folder, None))


# Without the others, which take long: test_jobs.py has jobs that meet them.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "requeue"])
def test_a_disturbed_job_leaves_what_an_undisturbed_one_leaves(stage: Stage, kind: str) -> None:
    run = stage.disturb(kind, seed="2")
    assert run.problems == []
    assert run.attempts == 2, "it came in time"
