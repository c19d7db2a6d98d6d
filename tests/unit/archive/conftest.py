from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hpcdeq.archive import open_archive
from hpcdeq.cli import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hpcdeq(monkeypatch, capsys):
    """Run a command line in this process."""

    def run(*words) -> Ran:
        monkeypatch.setattr(sys, "argv", ["hpcdeq", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Ran(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def take(tmp_path, hpcdeq):
    """Ingest files and return the one scene that comes of it."""

    def run(*words):
        ran = hpcdeq("ingest", *words, "--archive", tmp_path / "A")
        assert ran.code == 0, ran.err
        (scene,) = open_archive(tmp_path / "A").scenes()
        return scene

    return run
