"""What a second run does, what a kill leaves, and that the bytes are the same every time."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import rawfiles
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdeq.archive import open_archive
from hpcdeq.archive.ingest import IngestOptions, ingest, sha256_of


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_run_skips_and_changes_nothing(raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "s", rawfiles.cube(31, 20, 20))
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    before = bytes_of(tmp_path / "A")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "A").rglob("*")}
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert (ran.code, ran.out) == (0, "skipped s: already there, from the same bytes with the same options\n")
    assert bytes_of(tmp_path / "A") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "A").rglob("*")} == times


def test_a_changed_source_needs_overwrite(raw, hpcdeq, tmp_path):
    np.save(raw / "s.npy", rawfiles.cube())
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    changed = rawfiles.cube(seed=1)
    np.save(raw / "s.npy", changed)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 3
    assert "failed s: is in the archive from another source (s.npy); --overwrite replaces it" in ran.err
    np.testing.assert_array_equal(open_archive(tmp_path / "A")["s"].radiance[...], rawfiles.cube())
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--overwrite").code == 0
    np.testing.assert_array_equal(open_archive(tmp_path / "A")["s"].radiance[...], changed)


def test_a_scene_that_lost_its_metadata_needs_overwrite(raw, hpcdeq, tmp_path):
    np.save(raw / "s.npy", rawfiles.cube())
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    before = bytes_of(tmp_path / "A")
    (tmp_path / "A/s/zarr.json").unlink()
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code != 0
    assert "failed s: is in the archive, but damaged (scene s: not a readable Zarr v3 scene" in ran.err
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--overwrite").code == 0
    assert bytes_of(tmp_path / "A") == before


def test_other_options_need_overwrite(raw, hpcdeq, tmp_path):
    np.save(raw / "s.npy", rawfiles.cube())
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--scale", "9000")
    assert ran.code == 3
    assert "failed s: is in the archive with other options" in ran.err
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--scale", "9000", "--overwrite").code == 0
    assert open_archive(tmp_path / "A")["s"].attributes["full_scale"] == 9000


def test_the_bytes_do_not_depend_on_place_workers_or_windows(raw, tmp_path, monkeypatch):
    values = rawfiles.cube(6, 300, 700, "float32")
    values[:, 10:20, 30:40] = 0.05
    rawfiles.envi(raw / "s.img", values, data_ignore_value=0.05)
    rawfiles.png_folder(raw / "t", rawfiles.cube(31, 20, 20))
    ingest([raw], tmp_path / "A", IngestOptions())
    monkeypatch.setattr("hpcdeq.archive.scan.WINDOW_BYTES", 1)
    elsewhere = tmp_path / "elsewhere"
    raw.rename(elsewhere)
    ingest([elsewhere / "t", elsewhere / "s.img"], tmp_path / "B", IngestOptions(), workers=3)
    first, second = bytes_of(tmp_path / "A"), bytes_of(tmp_path / "B")
    assert first == second
    assert not any(str(tmp_path).encode() in content for content in first.values())


def test_checksum_of_several_files_is_that_of_cat(raw):
    (raw / "a").write_bytes(b"ab")
    (raw / "b").write_bytes(b"c")
    assert (
        sha256_of([raw / "a", raw / "b"])
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_leftovers_of_a_killed_run_are_swept(raw, hpcdeq, tmp_path):
    np.save(raw / "s.npy", rawfiles.cube())
    child = (
        "import os, numpy as np; from hpcdeq.archive import open_archive, SceneHeader; "
        f"a = open_archive({str(tmp_path / 'A')!r}, create=True); "
        "a.draft('s', SceneHeader(shape=(5, 70, 90), dtype=np.dtype('uint16'))); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", child], check=False)
    assert len(list((tmp_path / "A.staging").iterdir())) == 1
    assert open_archive(tmp_path / "A").names() == []
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A").code == 0
    assert not (tmp_path / "A.staging").exists()


def test_a_kill_while_an_archive_is_made_is_no_obstacle(tmp_path):
    child = (
        "import os, pathlib; from hpcdeq.archive import open_archive; "
        f"pathlib.Path.replace = lambda *_: os._exit(9); open_archive({str(tmp_path / 'A')!r}, create=True)"
    )
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 9
    archive = open_archive(tmp_path / "A", create=True)
    archive.sweep()
    archive.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["A", "zarr.json"]


def test_an_error_while_writing_leaves_the_old_scene(raw, hpcdeq, tmp_path, monkeypatch):
    np.save(raw / "s.npy", rawfiles.cube())
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    before = bytes_of(tmp_path / "A")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcdeq.archive.store.SceneDraft.write", full)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--overwrite")
    assert (ran.code, "No space left on device" in ran.err) == (1, True)
    assert bytes_of(tmp_path / "A") == before
    assert not (tmp_path / "A.staging").exists()


def test_json_tells_what_was_found(raw, hpcdeq, tmp_path):
    rawfiles.matlab73(raw / "s.mat", rawfiles.cube(), wavelengths=np.arange(400.0, 450, 10))
    np.save(raw / "bad.npy", np.ones(3))
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--json")
    assert ran.code == 3
    scenes = {s["name"]: s for s in json.loads(ran.out)["scenes"]}
    assert scenes["bad"]["status"] == "failed"
    assert scenes["s"]["facts"] == {
        "format": "MATLAB v7.3",
        "variable": "rad",
        "shape": [5, 70, 90],
        "dtype": "uint16",
        "wavelengths": [400, 410, 420, 430, 440],
        "full_scale": float(rawfiles.cube().max()),
        "full_scale_from": "measured maximum",
        "masked_pixels": 0,
    }


def test_info_shows_every_scene(raw, hpcdeq, tmp_path):
    values = rawfiles.cube(31, 80, 90, "uint16")
    values[:, :3] = 5
    listed = "{" + ",".join(str(400 + 10 * n) for n in range(31)) + "}"
    rawfiles.envi(raw / "s.img", values, data_ignore_value=5, wavelength=listed, wavelength_units="nm")
    np.save(raw / "t.npy", rawfiles.cube(dtype="float32"))
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    ran = hpcdeq("info", tmp_path / "A", "--json")
    first, second = json.loads(ran.out)["scenes"]
    assert (first["shape"], first["masked_pixels"], first["wavelengths_nm"]) == (
        [31, 80, 90],
        270,
        [400, 700],
    )
    assert (second["dtype"], second["wavelengths_nm"], second["full_scale"]) == ("float32", None, 1.0)
    assert second["bytes"] == sum(len(b) for b in bytes_of(tmp_path / "A" / "t").values())
    assert second["noise_sigma_255"] > 10  # uniform noise of +-0.4 is all it holds
    table = hpcdeq("info", tmp_path / "A", "t").out.splitlines()
    assert table[0].split()[:5] == ["scene", "bands", "rows", "columns", "dtype"]
    assert [line.split()[0] for line in table] == ["scene", "t"]
    assert hpcdeq("info", tmp_path / "A", "nope").code == 1
    assert hpcdeq("info", tmp_path / "nowhere").code == 1


shapes = st.tuples(st.integers(2, 6), st.integers(20, 200), st.integers(20, 340))
types = st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "float32"])


@settings(max_examples=25, deadline=None)
@given(shape=shapes, dtype=types, axes=st.permutations("byx"), fortran=st.booleans())
def test_any_shape_type_and_order_of_axes_comes_back(shape, dtype, axes, fortran):
    values = rawfiles.cube(*shape, dtype)
    with tempfile.TemporaryDirectory() as folder:
        turned = values.transpose(["byx".index(a) for a in axes])
        np.save(
            Path(folder) / "s.npy", np.asfortranarray(turned) if fortran else np.ascontiguousarray(turned)
        )
        options = IngestOptions(axes="".join(axes))
        (outcome,) = ingest([Path(folder) / "s.npy"], Path(folder) / "A", options)
        assert outcome.status == "ingested", outcome.message
        np.testing.assert_array_equal(open_archive(Path(folder) / "A")["s"].radiance[...], values)


@settings(max_examples=15, deadline=None)
@given(
    shape=shapes,
    interleave=st.sampled_from(["bil", "bip", "bsq"]),
    ignored=st.integers(0, 400),
    data=st.data(),
)
def test_masked_pixels_are_those_equal_in_all_bands(shape, interleave, ignored, data):
    values = rawfiles.cube(*shape, "int16")
    rng = np.random.default_rng(ignored)
    masked = np.zeros(shape[1:], bool)
    masked.flat[rng.choice(masked.size, ignored % masked.size, replace=False)] = True
    values[:, masked] = -9999
    values[0, ~masked & (rng.random(shape[1:]) < 0.05)] = -9999  # one band only: a value like any other
    with tempfile.TemporaryDirectory() as folder:
        rawfiles.envi(Path(folder) / "s.img", values, interleave, data_ignore_value="-9999")
        ingest([Path(folder)], Path(folder) / "A", IngestOptions())
        scene = open_archive(Path(folder) / "A")["s"]
        np.testing.assert_array_equal(scene.valid_mask(), ~masked)
        np.testing.assert_array_equal(scene.radiance[...], np.where(masked, 0, values))


def _write_large(path: Path, kind: str, edge: int) -> Path:
    rows = (np.arange(31 * edge).reshape(31, 1, edge) % 60000 + 1).astype(np.uint16)
    values = np.broadcast_to(rows, (31, edge, edge))
    if kind == "npy":
        np.save(path / "s.npy", values)
    elif kind == "envi":
        rawfiles.envi(path / "s.img", values, "bip")
    else:
        with h5py.File(path / "s.h5", "w") as file:
            file.create_dataset("cube", data=values, chunks=(31, 65, 260))
    return path


@pytest.mark.parametrize("kind", ["npy", "envi", "hdf5"])
def test_memory_does_not_grow_with_the_scene(kind, tmp_path):
    """A scene of 9 times the pixels (151 MB against 17): its peak may grow by the window's budget, not by the scene.

    VmHWM, as ru_maxrss starts at the peak of the process that this one was forked from.
    """
    program = (
        "import sys, pathlib; from hpcdeq.archive import ingest as i, scan; scan.WINDOW_BYTES = 4 << 20; "
        "o = i.ingest([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[1], 'A'), i.IngestOptions()); "
        "assert o[0].status == 'ingested', o; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for edge in (520, 1560):
        folder = tmp_path / str(edge)
        folder.mkdir()
        _write_large(folder, kind, edge)
        ran = subprocess.run(
            [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
        )
        peaks.append(int(ran.stdout) / 1024)
    assert peaks[1] - peaks[0] < 100, f"{peaks} MiB"  # 64 of them are the cache of HDF5


def test_wrong_paths_are_told_before_anything_is_made(raw, hpcdeq, tmp_path):
    ran = hpcdeq("ingest", tmp_path / "typo", "--archive", tmp_path / "A")
    assert ran.code == 2
    assert ran.err == f"error: no such file or folder: {tmp_path / 'typo'}; name what holds the raw scenes\n"
    np.save(raw / "s.npy", rawfiles.cube())
    ran = hpcdeq("ingest", raw, "--archive", raw)
    assert ran.code == 2
    assert "is the folder of the raw scenes; choose another one for the archive" in ran.err
    assert not (tmp_path / "A").exists()
    assert sorted(p.name for p in raw.iterdir()) == ["s.npy"]


def test_an_archive_is_not_made_inside_another(raw, hpcdeq, tmp_path):
    np.save(raw / "s.npy", rawfiles.cube())
    hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    before = bytes_of(tmp_path / "A")
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A/b/C")
    assert ran.code == 2
    assert f"would lie inside the archive {tmp_path / 'A'}; choose a folder outside of it" in ran.err
    assert bytes_of(tmp_path / "A") == before


def test_a_full_disk_is_not_blamed_on_the_source(raw, hpcdeq, tmp_path, monkeypatch):
    np.save(raw / "s.npy", rawfiles.cube())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hpcdeq.archive.draft.SceneDraft.write", full)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 1
    assert ran.err.endswith(
        f"error: {tmp_path / 'A'} cannot be written: No space left on device; "
        "what is finished stays, and the same command goes on\n"
    )
    monkeypatch.undo()
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A").code == 0
