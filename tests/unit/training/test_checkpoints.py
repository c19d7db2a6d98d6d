"""Whatever dies or decays, the newest sound checkpoint is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdeq.errors import FencedError, TrainingError
from hpcdeq.training import checkpoints
from hpcdeq.training.log import RunLog

OLD, NEW, NEXT = (checkpoints.name_of(1, 0, step) for step in (5, 10, 15))
_POINTS = [
    (Path, "mkdir"),
    (Path, "open"),
    (torch, "save"),
    (os, "fsync"),
    (Path, "iterdir"),
    (Path, "rename"),
    (os, "open"),
    (os, "close"),
    (shutil, "rmtree"),
]


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def commit(folder: Path, name: str, step: int) -> None:
    """Write a checkpoint, as a new process does."""
    checkpoints.commit(checkpoints.take_over(folder, {}), name, state(step))


def write(folder: Path, name: str, step: int) -> None:
    own = checkpoints.take_over(folder, {})
    checkpoints.commit(own, name, state(step))
    checkpoints.prune(own, 1, OLD)


def step_of(folder: Path) -> int:
    found = checkpoints.latest(folder)
    assert found is not None
    return int(checkpoints.load(found)["step"])


def count_points(folder: Path, kill_at: int | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Write a checkpoint, and kill it before the given call that touches the disk; return how many such calls there are."""
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise Killed
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in _POINTS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            write(folder, NEXT, 15)
        except Killed:
            assert kill_at is not None
    return calls


def test_a_kill_before_any_call_of_a_save_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, step in ((OLD, 5), (NEW, 10)):
        write(tmp_path / "undisturbed", name, step)
    points = count_points(tmp_path / "undisturbed", None, monkeypatch)
    assert points > 12
    assert step_of(tmp_path / "undisturbed") == 15
    found = []
    for kill_at in range(1, points + 1):
        folder = tmp_path / str(kill_at)
        for name, step in ((OLD, 5), (NEW, 10)):
            write(folder, name, step)
        count_points(folder, kill_at, monkeypatch)
        found.append(step_of(folder))
        assert checkpoints.load(folder / OLD)["step"] == 5, "the best one is kept"
        assert not [p for p in folder.iterdir() if p.name.startswith("damaged")]
        if found[-1] == 10:
            write(folder, NEXT, 15)  # as the run that goes on does
        assert step_of(folder) == 15
        commit(folder, checkpoints.name_of(1, 0, 20), 20)
        assert len(list(folder.glob(".*"))) == 1, "what a kill left is swept; its own folder is there"
    assert found == sorted(found), "once it is visible it stays"
    assert set(found) == {10, 15}


@pytest.mark.parametrize("file", [checkpoints.STATE, checkpoints.MANIFEST])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "lost"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(tmp_path, OLD, 5)
    commit(tmp_path, NEW, 10)
    path = tmp_path / NEW / file
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "lost":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:-1], "flipped": flipped}[damage])
    if not (file == checkpoints.MANIFEST and damage == "lost"):
        with pytest.raises(TrainingError, match="is damaged"):
            checkpoints.load(tmp_path / NEW)
    assert step_of(tmp_path) == 5
    if not (file == checkpoints.MANIFEST and damage == "lost"):  # without one it never was a checkpoint
        assert f"checkpoint {NEW} is damaged" in capsys.readouterr().err
        assert list(tmp_path.glob(f"damaged-{NEW}-*"))


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    commit(tmp_path, OLD, 5)
    (tmp_path / OLD / checkpoints.STATE).write_bytes(b"")
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "nothing") is None


def attempt(restart: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": "7"} | ({"SLURM_RESTART_COUNT": str(restart)} if restart else {})


@pytest.mark.parametrize(
    ("old", "new"), [({}, {}), (attempt(0), attempt(1)), (attempt(3), {"SLURM_JOB_ID": "8"})]
)
def test_an_old_copy_of_a_run_cannot_commit_at_whatever_point_it_is_overtaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, str], new: dict[str, str]
) -> None:
    """The new copy takes over before each call of the old one's commit that touches the disk."""
    seen = set()
    for overtaken_at in range(1, 30):
        folder = tmp_path / str(overtaken_at)
        own = checkpoints.take_over(folder, old)
        newer: list[Path] = []
        calls = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == overtaken_at:  # noqa: B023
                    newer.append(checkpoints.take_over(folder, new))  # noqa: B023
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in _POINTS:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                checkpoints.commit(own, NEW, state(10))
            except FencedError:
                assert not (folder / NEW).exists()
                seen.add("fenced")
            else:
                seen.add("committed before")
        if not newer:
            break
        assert not own.exists()
        if not (folder / NEW).exists():
            checkpoints.commit(newer[0], NEW, state(10))
        assert step_of(folder) == 10
    else:
        pytest.fail("more calls than expected")
    assert seen == {"fenced", "committed before"}


def test_an_older_attempt_of_a_job_does_not_take_over_from_a_newer_one(tmp_path: Path) -> None:
    newer = checkpoints.take_over(tmp_path, attempt(2))
    with pytest.raises(FencedError, match="attempt 2 of job 7 has taken over this run; attempt 1 ends"):
        checkpoints.take_over(tmp_path, attempt(1))
    checkpoints.commit(newer, NEW, state(10))
    assert step_of(tmp_path) == 10


def test_an_old_copy_that_was_overtaken_removes_and_replaces_nothing(tmp_path: Path) -> None:
    """It may stand still between any two of its calls, as at a disk that does not answer."""
    folder = tmp_path / "checkpoints"
    old = checkpoints.take_over(folder, attempt(0))
    (old / "model").mkdir()
    new = checkpoints.take_over(folder, attempt(1))
    for name, step in ((OLD, 5), (NEW, 10), (NEXT, 15)):
        checkpoints.commit(new, name, state(step))
    (new / "model").mkdir()
    (new / "model/weights").write_text("newer")
    checkpoints.publish(new, "model")
    log = RunLog(tmp_path, new, 0, tensorboard=False)
    log.write(1, {"loss": 0.5})
    for act in (
        lambda: checkpoints.prune(old, 1, None),
        lambda: checkpoints.publish(old, "model"),
        lambda: RunLog(tmp_path, old, 0, tensorboard=False),
    ):
        with pytest.raises(FencedError):
            act()
    log.write(2, {"loss": 0.25})
    log.close()
    assert [path.name for path in checkpoints.committed(folder)] == [OLD, NEW, NEXT]
    assert (tmp_path / "model/weights").read_text() == "newer"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_is_published_replaces_what_was(tmp_path: Path) -> None:
    for text in ("first", "second"):
        own = checkpoints.take_over(tmp_path / "checkpoints", {})
        (own / "model").mkdir()
        (own / "model/weights").write_text(text)
        checkpoints.publish(own, "model")
        assert (tmp_path / "model/weights").read_text() == text
