"""A stand-in for SLURM's commands, for what needs no real cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FakeSlurm:
    """Commands that write down how they were called, and answer what the test says."""

    folder: Path

    def answers(self, command: str, words: str = "", code: int = 0) -> None:
        """Say what a command answers from now on."""
        file = self.folder / command
        stream = 2 if code else 1
        file.write_text(
            f'#!/bin/sh\necho "$0 $@" >>{self.folder}/calls\ncat <<"END" >&{stream}\n{words}\nEND\nexit {code}\n'
        )
        file.chmod(0o755)

    def calls(self, command: str) -> list[str]:
        """The arguments of each call of a command."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        start = f"{self.folder / command} "
        return [line.removeprefix(start) for line in lines if line.startswith(start)]


def fake_slurm(folder: Path) -> FakeSlurm:
    """Make SLURM's commands of a cluster with nothing in its queue."""
    fake = FakeSlurm(folder)
    folder.mkdir()
    fake.answers("sbatch", "Submitted batch job 77")
    fake.answers("squeue")
    fake.answers("scontrol")
    fake.answers("scancel")
    return fake
