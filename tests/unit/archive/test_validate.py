"""Damage anywhere in an archive is found and named; sound scenes beside it are still checked."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import rawfiles

from hpcdeq.archive import open_archive
from tests.conftest import add_scene


@pytest.fixture
def archive(raw, tmp_path, hpcdeq):
    np.save(raw / "bad.npy", rawfiles.cube(5, 300, 400, "float32"))
    np.save(raw / "good.npy", rawfiles.cube(seed=3))
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--axes", "byx").code == 0
    return open_archive(tmp_path / "A")


def shard(archive, row, column):
    return archive["bad"].path / "radiance" / "c" / "0" / str(row) / str(column)


def test_a_sound_archive(archive, hpcdeq):
    ran = hpcdeq("validate", archive.path)
    assert (ran.code, ran.out) == (0, "ok bad\nok good\n")


def test_a_flipped_bit_names_its_chunk(archive, hpcdeq):
    window = next(archive["bad"].shards())
    path = archive["bad"].shard_path(window)
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # in the first chunk of the shard
    path.write_bytes(content)
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    bad, good = ran.out.splitlines()
    assert bad.startswith("scene bad, rows 0:65, columns 0:65: chunk cannot be decoded")
    assert "ingest the scene again" in bad
    assert good == "ok good"
    assert "1 of 2 scenes are damaged: bad" in ran.err


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_shard(archive, hpcdeq, keep):
    last = list(archive["bad"].shards())[-1]
    path = archive["bad"].shard_path(last)
    path.write_bytes(path.read_bytes()[:keep])
    ran = hpcdeq("validate", archive.path, "--json")
    assert ran.code == 3
    told = json.loads(ran.out)
    assert told["bad_scenes"] == ["bad"]
    for problem in told["problems"]:
        w = problem["window"]
        assert (last.y0 <= w["y0"] < w["y1"] <= last.y1, last.x0 <= w["x0"] < w["x1"] <= last.x1) == (
            True,
            True,
        )


def test_a_missing_shard_is_not_taken_for_zeros(archive, hpcdeq):
    last = list(archive["bad"].shards())[-1]
    archive["bad"].shard_path(last).unlink()
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    assert f"scene bad, rows {last.y0}:{last.y1}, columns {last.x0}:{last.x1}: shard radiance/c/0/" in ran.out
    assert "is missing; ingest the scene again" in ran.out


@pytest.mark.parametrize(("lost", "others"), [(10, []), (11, [1]), (20, [10])])
def test_of_many_missing_shards_ten_are_named(tmp_path, hpcdeq, lost, others):
    """Metadata can claim millions."""
    archive = open_archive(tmp_path / "A", create=True)
    add_scene(archive, "long", np.ones((1, 20 * 260, 4)))
    for window in list(archive["long"].shards())[:lost]:
        archive["long"].shard_path(window).unlink()
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    lines = ran.out.splitlines()
    assert all("is missing; ingest the scene again" in line for line in lines[:10])
    assert lines[10:] == [f"scene long: other missing shards: {n}; ingest the scene again" for n in others]


def test_a_shard_swapped_for_another_sound_one(archive, hpcdeq):
    """Every chunk decodes; only the checksum of the scene knows."""
    windows = list(archive["bad"].shards())
    size = {}
    for w in windows:
        size.setdefault((w.height, w.width), []).append(w)
    path = archive["bad"].shard_path(windows[0])
    other = rawfiles.cube(5, windows[0].height, windows[0].width, "float32", seed=8)
    before = path.read_bytes()
    import zarr

    zarr.open_group(archive["bad"].path, mode="r+")["radiance"][(slice(None), *windows[0].slices)] = other
    assert path.read_bytes() != before
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    assert "has checksum" in ran.out
    assert "not " in ran.out


def test_stored_nan_is_found(archive, hpcdeq):
    import zarr

    zarr.open_group(archive["bad"].path, mode="r+")["radiance"][2, 70, 3] = np.nan
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    assert "scene bad, rows 65:130, columns 0:65: chunk holds 1 NaN or infinite values" in ran.out


@pytest.mark.parametrize("lost", ["shard_checksum", "radiance/zarr.json", "zarr.json"])
def test_a_scene_that_cannot_be_opened_does_not_end_the_others(archive, hpcdeq, lost):
    path = archive["bad"].path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    assert ran.out.splitlines()[0].startswith("scene bad: ")
    assert "ok good" in ran.out


@pytest.mark.parametrize(
    ("lost", "line"),
    [
        ("valid_mask/c/0/0", "valid_mask/c/0/0 is missing"),
        ("wavelength/c/0", "cannot read wavelength: wavelength/c/0 is missing"),
    ],
)
def test_lost_files_that_zarr_reads_as_zeros(raw, tmp_path, hpcdeq, lost, line):
    values = rawfiles.cube()
    values[:, 0, 0] = 7
    nm = "{400, 410, 420, 430, 440}"
    rawfiles.envi(raw / "s.img", values, data_ignore_value=7, wavelength=nm, wavelength_units="nm")
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert hpcdeq("validate", tmp_path / "A").code == 0
    (tmp_path / "A" / "s" / lost).unlink()
    ran = hpcdeq("validate", tmp_path / "A")
    assert (ran.code, line in ran.out) == (3, True), ran.out


def test_damaged_wavelengths_are_one_line(raw, tmp_path, hpcdeq, archive):
    np.savez(raw / "s.npz", cube=rawfiles.cube(), wavelength=np.arange(400.0, 450, 10))
    assert hpcdeq("ingest", raw / "s.npz", "--archive", archive.path).code == 0
    (archive.path / "s" / "wavelength" / "c" / "0").write_bytes(b"garbage")
    ran = hpcdeq("validate", archive.path)
    assert ran.code == 3
    assert "scene s: cannot read wavelength" in ran.out
    assert "ok good" in ran.out
