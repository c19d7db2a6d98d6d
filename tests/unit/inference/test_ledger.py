"""What the ledger keeps, gives back and forgets; whether it is whole after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hpcdeq.archive import Archive
from hpcdeq.errors import ConfigError
from hpcdeq.inference.ledger import Complete, Job, Ledger, Record, ledger_folder
from hpcdeq.inference.plan import ScenePlan
from hpcdeq.inference.tiles import Convergence, DenoiseSettings, TileSolution
from tests.unit.inference.plans import a_plan

RECORD = Record(
    checksums={"radiance/c/0/0/0": 7},
    tiles=[TileSolution(0, 16, 0.25, 9, True, (3, 1)), TileSolution(16, 0, 0.5, 20, False)],
    masked=5,
    noise=[0.1, 0.2],
)
COMPLETE = Complete(
    fingerprint="f",
    checksums={"zarr.json": 1},
    convergence=Convergence(tiles=4, converged=3, iterations=50, worst_residual=0.5),
    masked=2,
    noise=30.5,
    remarks=["its noise is high"],
)


A, B = a_plan("a"), a_plan("b.v2")  # a dot, as names may have


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One that nothing was written into, of an archive that does not exist."""
    return Ledger(Archive(tmp_path / "out.zarr"))


def begin(ledger: Ledger, *scenes: ScenePlan) -> None:
    ledger.begin(Job(Path("in.zarr"), Path("model"), DenoiseSettings(), scenes))


def files(ledger: Ledger) -> set[str]:
    return {str(path.relative_to(ledger.folder)) for path in ledger.folder.rglob("*") if path.is_file()}


# What is to be done


def test_it_lies_beside_the_archive_and_nothing_else_is_made(ledger: Ledger, tmp_path: Path) -> None:
    begin(ledger, A)
    assert ledger_folder(tmp_path / "out.zarr") == ledger.folder == tmp_path / "out.zarr.ledger"
    assert files(ledger) == {"job.json"}
    assert list(ledger.out.staging.iterdir()) == []
    assert not ledger.out.path.exists()


def test_a_job_is_read_as_it_was_written_wherever_the_reader_stands(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = DenoiseSettings(overlap=3, tolerance=0.5, codes=True, device="cpu")
    job = Job(Path("in.zarr"), Path("models/m"), settings, [A, B], there=1)
    ledger.begin(job)
    monkeypatch.chdir("/")
    read = Ledger(ledger.out).job()
    assert read == replace(job, archive=tmp_path / "in.zarr", model=tmp_path / "models/m")
    assert hash(read.scenes[0]) == hash(A), "a plan is a key: its shape is a tuple again"


def test_a_plan_in_which_all_scenes_are_shared_together_says_so(ledger: Ledger) -> None:
    begin(ledger, A)
    assert ledger.job().there == 0
    file = ledger.folder / "job.json"
    stored = json.loads(file.read_text())
    del stored["there"]  # as before it was told
    file.write_text(json.dumps(stored))
    assert ledger.job().there == 0


@pytest.mark.parametrize("content", [None, b"", b'{"format": 6, "sce', b"\xff\xfe\x00"])
def test_without_a_readable_plan_it_is_said_what_should_be_there(
    ledger: Ledger, content: bytes | None
) -> None:
    if content is not None:
        ledger.folder.mkdir()
        (ledger.folder / "job.json").write_bytes(content)
    with pytest.raises(
        ConfigError,
        match=r"out\.zarr is not an archive that hpcdeq denoise wrote: there is no readable .*out\.zarr\.ledger/job\.json; ",
    ):
        ledger.job()


@pytest.mark.parametrize("format_", [None, 5, 7])
def test_a_plan_of_another_version_is_not_read_but_may_be_replaced(
    ledger: Ledger, format_: int | None
) -> None:
    ledger.folder.mkdir()
    (ledger.folder / "job.json").write_text(json.dumps({} if format_ is None else {"format": format_}))
    with pytest.raises(
        ConfigError, match=r"^.*ledger is of another version of hpcdeq; give the command that"
    ):
        ledger.job()
    begin(ledger, A)
    assert ledger.job().scenes == [A]


def test_a_new_plan_forgets_what_it_makes_otherwise_and_keeps_what_it_goes_on_with(ledger: Ledger) -> None:
    same, other, gone, finished = (a_plan(name) for name in ("same", "other", "gone", "finished"))
    begin(ledger, same, other, gone, finished)
    for scene in (same, other, gone, finished):
        for unit in scene.units():
            ledger.write(unit, RECORD)
    for scene in (same, other, finished):
        ledger.complete(scene.name, COMPLETE)
    ledger.fail("gone", "broken")
    begin(ledger, same, replace(other, fingerprint="new"))
    kept = {scene.name for scene in (same, other, gone, finished) if ledger.finished(scene)}
    assert kept == {"same", "finished"}, "the scene of the last is in the archive, of another input"
    assert ledger.failures() == {}
    assert [name for name, _ in ledger.all_completed()] == ["finished", "other", "same"]


def test_a_worker_sees_that_a_newer_plan_has_come(ledger: Ledger) -> None:
    begin(ledger, A, B)
    own = Ledger(ledger.out)
    assert [own.wants(scene) for scene in (A, B, a_plan("c"), replace(A, fingerprint="new"))] == [
        True, True, False, False,
    ]  # fmt: skip
    begin(ledger, replace(A, fingerprint="new"))
    assert [own.wants(scene) for scene in (A, B, replace(A, fingerprint="new"))] == [False, False, True]


@pytest.mark.parametrize("same", ["time", "inode"])
def test_a_newer_plan_is_seen_even_if_its_file_looks_nearly_the_same(ledger: Ledger, same: str) -> None:
    """File systems count time in steps, and give a file the number of one that was removed."""
    begin(ledger, B)
    newer = (ledger.folder / "job.json").read_text()
    begin(ledger, A)
    file = ledger.folder / "job.json"
    assert ledger.wants(A)
    then = file.stat().st_mtime_ns
    if same == "time":
        aside = file.with_name("aside")
        aside.write_text(newer)
        os.utime(aside, ns=(then, then))
        aside.replace(file)
    else:
        file.write_text(newer)
        os.utime(file, ns=(then + 1, then + 1))
    assert (ledger.wants(A), ledger.wants(B)) == (False, True)


def test_a_plan_is_read_once_while_it_stays(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before each write, and may tell of thousands of scenes."""
    begin(ledger, A, B)
    read, asked = Ledger.job, []
    monkeypatch.setattr(Ledger, "job", lambda self: asked.append(True) or read(self))
    for _ in range(3):
        assert ledger.wants(A)
        assert ledger.wants(B)
    assert len(asked) == 1


# Units


def test_a_record_is_read_as_it_was_written(ledger: Ledger) -> None:
    one, two = A.units()
    assert ledger.read(one) is None
    ledger.write(one, RECORD)
    assert Ledger(ledger.out).read(one) == RECORD
    assert ledger.read(two) is None
    bare = Record(checksums={}, tiles=[])
    ledger.write(two, bare)
    assert ledger.read(two) == bare
    assert (bare.masked, bare.noise) == (0, [])
    assert files(ledger) == {"units/a/f/0-0.json", "units/a/f/130-0.json"}


def test_a_damaged_record_is_none_so_that_the_unit_is_computed_again(ledger: Ledger) -> None:
    unit = next(A.units())
    ledger.write(unit, RECORD)
    for content in (b"", b'{"checks', b"\xff\xfe\x00"):
        (ledger.folder / "units/a/f/0-0.json").write_bytes(content)
        assert ledger.read(unit) is None


def test_a_scene_is_finished_when_all_its_units_are(ledger: Ledger) -> None:
    for unit in A.units():
        assert not ledger.finished(A)
        ledger.write(unit, RECORD)
    assert ledger.finished(A)
    assert not ledger.finished(replace(A, fingerprint="new")), "records are of a plan"


def test_it_tells_which_scenes_were_begun_and_when_their_units_were_recorded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger.begun() == set()
    assert ledger.times(A) == {}
    for scene in (A, B):
        for number, unit in enumerate(scene.units()):
            ledger.write(unit, RECORD)
            os.utime(ledger.folder / f"units/{scene.name}/f/{unit.window.y0}-0.json", (0, 1000.5 + number))
    # A file that was replaced while somebody read it, as NFS keeps it; listed before the others.
    (ledger.folder / "units/a/f/.nfs0001").write_text("")
    scandir = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: contextlib.nullcontext(sorted(scandir(path), key=lambda file: file.name))
    )
    assert ledger.begun() == {"a", "b.v2"}
    assert ledger.times(A) == ledger.times(B) == {(0, 0): 1000.5, (130, 0): 1001.5}


def test_of_records_that_are_being_forgotten_there_are_no_times(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in A.units():
        ledger.write(unit, RECORD)
    scandir = os.scandir

    def slow(path: Path) -> object:
        monkeypatch.undo()
        listed = list(scandir(path))
        ledger.forget(A)
        return contextlib.nullcontext(listed)

    monkeypatch.setattr(os, "scandir", slow)
    assert ledger.times(A) == {}


# Scenes


def test_what_is_known_of_a_complete_scene_is_read_as_it_was_written(ledger: Ledger) -> None:
    assert ledger.completed("b.v2") is None
    assert ledger.completed_at("b.v2") is None
    ledger.complete("b.v2", COMPLETE)
    assert Ledger(ledger.out).completed("b.v2") == COMPLETE
    os.utime(ledger.folder / "complete/b.v2.json", (0, 1000.5))
    assert ledger.completed_at("b.v2") == 1000.5


def test_complete_scenes_are_told_in_the_order_of_their_names_without_damaged_ones(ledger: Ledger) -> None:
    assert list(ledger.all_completed()) == []
    for name in ("c", "b.v2", "a", "d"):
        ledger.complete(name, replace(COMPLETE, remarks=[name]))
    (ledger.folder / "complete/a.json").write_text('{"finger')
    (ledger.folder / "complete/.nfs0001.json").write_text("{}")
    assert list(ledger.all_completed()) == [
        (name, replace(COMPLETE, remarks=[name])) for name in ("b.v2", "c", "d")
    ]


def test_a_failure_is_forgotten_when_the_scene_is_complete(ledger: Ledger) -> None:
    assert ledger.failures() == {}
    ledger.fail("a", "no space")
    ledger.fail("b.v2", "cannot read rows 0 to 65")
    ledger.fail("torn", "")
    (ledger.folder / "failed/torn.json").write_text("")
    assert ledger.failures() == {"a": "no space", "b.v2": "cannot read rows 0 to 65"}
    ledger.complete("a", COMPLETE)
    ledger.complete("never failed", COMPLETE)
    assert ledger.failures() == {"b.v2": "cannot read rows 0 to 65"}


def test_a_scene_can_be_forgotten_and_others_stay(ledger: Ledger) -> None:
    ledger.forget(A)  # nothing is known of it
    for scene in (A, B):
        for unit in scene.units():
            ledger.write(unit, RECORD)
        ledger.complete(scene.name, COMPLETE)
    ledger.forget(A)
    assert files(ledger) == {"units/b.v2/f/0-0.json", "units/b.v2/f/130-0.json", "complete/b.v2.json"}


# Writes


def test_a_file_is_whole_on_the_disk_before_it_takes_its_place(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host that crashes leaves an empty one of the right name."""
    events: list[tuple[str, int]] = []
    fsync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("on disk", os.fstat(descriptor).st_size))

    def replaced(source: Path, target: Path) -> Path:
        events.append(("in place", source.stat().st_size))
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    ledger.fail("a", "x" * 100_000)
    size = (ledger.folder / "failed/a.json").stat().st_size
    assert events == [("on disk", size), ("in place", size)]
    assert size > 100_000


def test_a_write_that_fails_leaves_the_file_that_was_there(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = next(A.units())
    ledger.write(unit, RECORD)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.write(unit, replace(RECORD, masked=99))
    assert ledger.read(unit) == RECORD
