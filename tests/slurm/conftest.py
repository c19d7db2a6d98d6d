"""The SLURM lab that all tests of this folder share, and its stand-in."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import fake
from tests.slurm.fake import FakeSlurm
from tests.slurm.lab import CannotRunError, Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A SLURM of three nodes with two CPUs each; tests find it idle.

    HPCDEQ_REQUIRE_LAB=1: where it cannot run, tests fail; otherwise they are skipped.
    """
    # In a folder of its own it does not meet another run of the tests.
    with tempfile.TemporaryDirectory(prefix="hpcdeq-lab-") as folder:
        lab = Lab(Path(folder) / "lab")
        try:
            lab.up(nodes=3)
            yield lab
        except CannotRunError as error:
            if os.environ.get("HPCDEQ_REQUIRE_LAB") == "1":
                pytest.fail(f"HPCDEQ_REQUIRE_LAB=1, but: {error}")
            pytest.skip(str(error))
        finally:
            lab.down()


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test the lab is as before it."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").tidy()


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """First in PATH."""
    made = fake.fake_slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made
