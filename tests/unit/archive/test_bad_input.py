"""Every bad file is named in one clear line, the good scene beside it is ingested, and the exit code is 3."""

from __future__ import annotations

import re
import sys

import h5py
import numpy as np
import pytest
import rawfiles

from hpcdeq.archive import open_archive
from hpcdeq.archive.readers import find, hdf5

GOOD = rawfiles.cube(31, 20, 20, seed=9)


def png(raw):
    return rawfiles.png_folder(raw / "bad", rawfiles.cube(31, 20, 20))


def truncated_png(raw):
    path = png(raw) / "bad_07.png"
    path.write_bytes(path.read_bytes()[:-300])


def empty_last_png(raw):
    (png(raw) / "bad_31.png").write_bytes(b"")


def missing_band(raw):
    folder = png(raw)
    (folder / "bad_04.png").unlink()
    (folder / "bad_01.png").unlink()


def other_size(raw):
    from PIL import Image

    Image.fromarray(rawfiles.cube(1, 20, 21)[0]).save(png(raw) / "bad_03.png")


def other_depth(raw):
    from PIL import Image

    Image.fromarray(rawfiles.cube(1, 20, 20, "uint8")[0]).save(png(raw) / "bad_03.png")


def two_series(raw):
    png(raw)
    (raw / "bad" / "other_01.png").write_bytes((raw / "bad" / "bad_01.png").read_bytes())


def band_twice(raw):
    png(raw)
    (raw / "bad" / "bad_1.png").write_bytes((raw / "bad" / "bad_01.png").read_bytes())


def coloured(raw):
    rawfiles.png_folder(
        raw / "bad", np.random.default_rng(0).integers(0, 255, (3, 20, 20, 3)).astype(np.uint8)
    )


def empty_bands(raw):
    values = rawfiles.cube(31, 20, 20)
    values[[2, 5, 6, 7]] = 0
    rawfiles.png_folder(raw / "bad", values)


def nan_and_inf(raw):
    values = rawfiles.cube(dtype="float32")
    values[3, 12, 40] = np.inf
    values[1, 12, 40] = np.nan
    values[0, 60, 2] = np.nan
    np.save(raw / "bad.npy", values)


def truncated_npy(raw):
    np.save(raw / "bad.npy", rawfiles.cube())
    with (raw / "bad.npy").open("r+b") as file:
        file.truncate(1000)


def object_npy(raw):
    np.save(raw / "bad.npy", np.array([{"a": 1}], object), allow_pickle=True)


def flat_npy(raw):
    np.save(raw / "bad.npy", np.ones((4, 4)))


def square_npy(raw):
    np.save(raw / "bad.npy", np.ones((20, 20, 20)))


def huge_npy(raw):
    with (raw / "bad.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (31, 1 << 40, 1 << 40), "fortran_order": False, "descr": "<f4"}
        )


def nothing_stored(raw):
    np.save(raw / "bad.npy", -rawfiles.cube(dtype="float32"))


def complex_envi(raw):
    rawfiles.envi(raw / "bad.img", rawfiles.cube())
    header = raw / "bad.hdr"
    header.write_text(header.read_text().replace("data type = 12", "data type = 6"))


def truncated_npz(raw):
    np.savez(raw / "bad.npz", cube=rawfiles.cube())
    with (raw / "bad.npz").open("r+b") as file:
        file.truncate(2000)


def several_npz(raw):
    np.savez(raw / "bad.npz", one=rawfiles.cube(), two=rawfiles.cube(4), flat=np.ones(3))


def object_npz(raw):
    np.savez(raw / "bad.npz", one=np.array([{}], object))


def several_hdf5(raw):
    with h5py.File(raw / "bad.h5", "w") as file:
        file["a"], file["deep/b"] = rawfiles.cube(), rawfiles.cube(4)


def truncated_hdf5(raw):
    rawfiles.matlab73(raw / "bad.mat", rawfiles.cube(31, 100, 100))
    with (raw / "bad.mat").open("r+b") as file:
        file.truncate(20000)


def external_link(raw):
    with h5py.File(raw / "bad.h5", "w") as file:
        file["group/cube"] = rawfiles.cube()
        file["group/other"] = h5py.ExternalLink("/etc/passwd", "/x")


def external_storage(raw):
    with h5py.File(raw / "bad.h5", "w") as file:
        file.create_dataset("cube", (5, 70, 90), "u1", external=[("/etc/passwd", 0, 31500)])


def virtual_dataset(raw):
    layout = h5py.VirtualLayout((5, 70, 90), "u2")
    layout[...] = h5py.VirtualSource("/tmp/elsewhere.h5", "cube", (5, 70, 90))
    with h5py.File(raw / "bad.h5", "w") as file:
        file.create_virtual_dataset("cube", layout)


def huge_chunk(raw):
    with h5py.File(raw / "bad.h5", "w") as file:
        file.create_dataset("cube", (31, 9000, 9000), "f8", chunks=(31, 9000, 1000), compression="gzip")


def no_array_hdf5(raw):
    with h5py.File(raw / "bad.h5", "w") as file:
        file["spectrum"] = np.ones(31)


def packed_netcdf(raw):
    rawfiles.netcdf4(raw / "bad.nc", rawfiles.cube(), attributes={"add_offset": 3.0})


def truncated_mat5(raw):
    rawfiles.matlab5(raw / "bad.mat", rawfiles.cube())
    with (raw / "bad.mat").open("r+b") as file:
        file.truncate(5000)


def several_mat5(raw):
    rawfiles.matlab5(raw / "bad.mat", rawfiles.cube(), other=np.ones((70, 90, 4)))


def bands_first_mat5(raw):
    rawfiles.matlab5(raw / "bad.mat", rawfiles.cube(70, 5, 90))


def complex_mat5(raw):
    rawfiles.matlab5(raw / "bad.mat", rawfiles.cube().astype(complex))


def zeroed_mat(raw):
    (raw / "bad.mat").write_bytes(bytes(4096))


def envi_without_data(raw):
    rawfiles.envi(raw / "bad.img", rawfiles.cube()).unlink()


def truncated_envi(raw):
    path = rawfiles.envi(raw / "bad.img", rawfiles.cube())
    with path.open("r+b") as file:
        file.truncate(62999)


def envi_without_lines(raw):
    rawfiles.envi(raw / "bad.img", rawfiles.cube(), drop=("lines",))


def nothing_but_ignored(raw):
    rawfiles.envi(raw / "bad.img", np.full((5, 9, 9), 7, np.uint16), data_ignore_value=7)


def truncated_tiff(raw):
    pytest.importorskip("rasterio")
    path = rawfiles.geotiff(raw / "bad.tif", rawfiles.cube())
    with path.open("r+b") as file:
        file.truncate(30000)


def classic_netcdf(raw):
    (raw / "bad.nc").write_bytes(b"CDF\x01" + bytes(100))


def dotted_name(raw):
    np.save(raw / "bad..scene.npy", rawfiles.cube())


CASES = {
    truncated_png: r"bad: truncated or damaged band bad_07.png .*copy it again",
    empty_last_png: r"bad: band bad_31.png is truncated or not a PNG",
    missing_band: r"bad: band 1, 4 is missing of 1 to 31; copy the folder again",
    other_size: r"bad: band bad_03.png is 20 x 21 pixels of 16 bits, but bad_01.png is 20 x 20 of 16 bits",
    other_depth: r"bad: band bad_03.png is 20 x 20 pixels of 8 bits, but bad_01.png is 20 x 20 of 16 bits",
    two_series: r"bad: more than one series of bands in one folder: bad_, other_",
    band_twice: r"bad: more than one file for band 1",
    coloured: r"bad: band bad_01.png is a colour picture",
    empty_bands: r"bad: all-zero band 2 \(420 nm\), 5 \(450 nm\).*--skip-bands 2,5-7",
    nan_and_inf: r"bad: 3 values are NaN or infinite, the first at row 12, column 40, band 1 .*--skip-bands",
    truncated_npy: r"bad: truncated: 1000 bytes, its header tells of 63128",
    object_npy: r"bad: Python objects \(a pickle\) are never read",
    flat_npy: r"bad: holds float64 \(4, 4\); a scene is a numeric 3-D array",
    square_npy: r"bad: shape \(20, 20, 20\) does not tell which axis holds the bands; say it with --axes",
    huge_npy: r"bad: truncated: ",
    nothing_stored: r"bad: the largest value is -0.1\d*, so the full scale is unknown; say it with --scale",
    complex_envi: r"bad: complex values",
    truncated_npz: r"bad: bad.npz is damaged or of an unknown format",
    several_npz: r"bad: 2 arrays could be the scene; .*--variable NAME; .* one \(5, 70, 90\) uint16, two \(4, 70, 90\)",
    object_npz: r"bad: no numeric 3-D array in it; the file holds: one \(1,\) object",
    several_hdf5: r"bad: 2 arrays could be the scene; .*a \(5, 70, 90\) uint16, deep/b \(4, 70, 90\) uint16",
    truncated_hdf5: r"bad: truncated or damaged HDF5 file",
    external_link: r"bad: group/other is a link to another file \(/etc/passwd\), never followed",
    external_storage: r"bad: cube keeps its data in other files",
    virtual_dataset: r"bad: cube keeps its data in other files",
    huge_chunk: r"bad: /cube has chunks of 2232000000 bytes, over the bound",
    no_array_hdf5: r"bad: no numeric 3-D array in it; the file holds: spectrum \(31,\) float64",
    packed_netcdf: r"bad: reflectance is packed with an add_offset",
    truncated_mat5: r"bad: truncated or damaged MATLAB file",
    several_mat5: r"bad: 2 arrays could be the scene; .*cube \(70, 90, 5\) uint16, other \(70, 90, 4\) double",
    bands_first_mat5: r"bad: shape \(5, 90, 70\) does not tell which axis holds the bands",
    complex_mat5: r"bad: variable 'cube' holds complex128 values",
    zeroed_mat: r"bad: bad.mat is damaged or of an unknown format; known are PNG band folders, ENVI",
    envi_without_data: r"bad: ENVI header bad.hdr has no data file beside it",
    truncated_envi: r"bad: truncated: bad.img has 62999 bytes, its header tells of 63000",
    envi_without_lines: r"bad: ENVI header tells no number for 'lines'",
    nothing_but_ignored: r"bad: no pixel holds data: all equal the data ignore value 7",
    truncated_tiff: r"bad: truncated or damaged TIFF file",
    classic_netcdf: r"bad: classic NetCDF; convert it with: nccopy -k nc4 bad.nc new.nc",
    dotted_name: r"bad..scene: 'bad..scene' cannot name a scene: .*rename",
}


@pytest.mark.parametrize("make", CASES, ids=lambda f: f.__name__)
def test_a_bad_scene_is_one_line_and_the_good_one_is_ingested(make, raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "good", GOOD)
    make(raw)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    lines = [line for line in ran.err.splitlines() if line.startswith("failed ")]
    assert len(lines) == 1, ran.err
    assert re.match("failed " + CASES[make], lines[0]), lines[0]
    assert ran.code == 3
    assert "error: 1 of 2 scenes were not ingested" in ran.err
    archive = open_archive(tmp_path / "A")
    assert archive.names() == ["good"]
    np.testing.assert_array_equal(archive["good"].radiance[...], GOOD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["A", "raw"], "nothing is left beside the archive"


def test_a_file_that_the_hdf5_library_never_comes_back_from(raw, hpcdeq, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_TRIAL_SECONDS", 3.0)
    rawfiles.png_folder(raw / "good", GOOD)
    path = rawfiles.netcdf4(raw / "bad.nc", rawfiles.cube())
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL") + 16  # its first object: number, references, size
    content[heap : heap + 48] = bytes(48)  # as where a block of the file was lost
    path.write_bytes(content)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert (
        "failed bad: truncated or damaged HDF5 file (the HDF5 library does not come back from it in 3 s)"
        in ran.err
    )
    assert ran.code == 3
    assert open_archive(tmp_path / "A").names() == ["good"]


def test_a_file_that_the_hdf5_library_crashes_at(raw, hpcdeq, tmp_path, monkeypatch):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5, "_TRIAL", crash)
    rawfiles.matlab73(raw / "bad.mat", rawfiles.cube())
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert (
        "failed bad: truncated or damaged HDF5 file (the HDF5 library crashes at it, with signal 11)"
        in ran.err
    )
    assert ran.code == 3


def test_wrong_variable_lists_what_exists(raw, hpcdeq, tmp_path):
    rawfiles.matlab73(raw / "icvl.mat", rawfiles.cube(), wavelengths=np.arange(400.0, 450, 10))
    rawfiles.matlab5(raw / "old.mat", rawfiles.cube())
    np.savez(raw / "some.npz", cube=rawfiles.cube())
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--variable", "cube")
    assert ran.code == 3
    assert (
        "failed icvl: variable 'cube' does not exist; the file holds: bands (1, 5) float64, rad (70, 90, 5) uint16"
        in ran.err
    )
    assert open_archive(tmp_path / "A").names() == ["old", "some"]
    ran = hpcdeq("ingest", raw / "icvl.mat", "--archive", tmp_path / "B", "--variable", "bands")
    assert "variable 'bands' cannot be a scene (numeric, 3-D)" in ran.err


def test_same_name_twice_in_one_run(raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "a" / "s", GOOD)
    np.save(raw / "s.npy", rawfiles.cube())
    ran = hpcdeq("ingest", raw / "a", raw / "s.npy", raw / "a" / "s", "--archive", tmp_path / "A")
    assert ran.code == 3
    (line,) = [x for x in ran.err.splitlines() if x.startswith("failed ")]
    assert re.fullmatch(
        r"failed s: .*/s\.npy has the same name as .*/a/s, which was taken; rename one of them", line
    )
    np.testing.assert_array_equal(open_archive(tmp_path / "A")["s"].radiance[...], GOOD)


def test_a_missing_path_a_single_png_and_an_unknown_file(raw, hpcdeq, tmp_path):
    folder = rawfiles.png_folder(raw / "good", GOOD)
    (raw / "notes.txt").write_text("hello")
    words = [raw / "gone", folder / "good_01.png", raw / "notes.txt", folder]
    ran = hpcdeq("ingest", *words, "--archive", tmp_path / "A")
    assert ran.code == 3
    assert "failed gone: no such file or folder" in ran.err
    assert "failed good_01: one PNG is one band; give the folder" in ran.err
    assert "failed notes: notes.txt is damaged or of an unknown format" in ran.err
    assert "ingested good" in ran.out


def test_nothing_found_is_a_usage_error(raw, hpcdeq, tmp_path):
    (raw / "notes.txt").write_text("hello")
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 2
    assert "error: no scene found in" in ran.err
    assert not (tmp_path / "A").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--axes", "yxz"), "--axes must hold each of y, x and b once"),
        (("--scale", "-1"), "--scale must be a positive number"),
        (("--skip-bands", "1,b"), "--skip-bands takes band numbers"),
        (("--skip-bands", "5-2"), "--skip-bands takes band numbers"),
    ],
)
def test_bad_options_are_usage_errors(raw, hpcdeq, tmp_path, words, line):
    rawfiles.png_folder(raw / "good", GOOD)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", *words)
    assert ran.code == 2
    assert f"error: {line}" in ran.err


def test_bands_to_skip_must_exist_and_leave_some(raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "good", GOOD)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--skip-bands", "31")
    assert (ran.code, "--skip-bands names band 31, but there are 31, counted from 0" in ran.err) == (3, True)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A", "--skip-bands", "0-30")
    assert (ran.code, "--skip-bands leaves none of the 31 bands" in ran.err) == (3, True)


def test_without_the_extra_a_geotiff_says_how_to_get_it(raw, hpcdeq, tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    rawfiles.geotiff(raw / "map.tif", rawfiles.cube())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 3
    assert (
        'failed map: reading GeoTIFF needs rasterio, which is not installed; run: pip install "hpcdeq[geo]"'
        in ran.err
    )


def test_archives_are_never_searched_for_raw_scenes(raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "good", GOOD)
    assert hpcdeq("ingest", raw, "--archive", raw / "A").code == 0
    assert [s.name for s in find([raw]).sources] == ["good"]
    ran = hpcdeq("ingest", raw, "--archive", raw / "A")
    assert ran.out.splitlines() == ["skipped good: already there, from the same bytes with the same options"]


def test_a_file_that_cannot_be_read_does_not_end_the_search(raw, hpcdeq, tmp_path, monkeypatch):
    rawfiles.png_folder(raw / "good", GOOD)
    (raw / "a.mat").write_bytes(b"locked")
    honest = sys.modules["hpcdeq.archive.readers.find"].sniff

    def sniff(path):
        if path.name == "a.mat":
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path)

    monkeypatch.setattr(sys.modules["hpcdeq.archive.readers.find"], "sniff", sniff)
    ran = hpcdeq("ingest", raw, "--archive", tmp_path / "A")
    assert ran.code == 3
    assert "failed a: cannot be read: [Errno 13] Permission denied" in ran.err
    assert "ingested good" in ran.out


def test_a_text_that_begins_with_envi_is_no_header(raw, hpcdeq, tmp_path):
    rawfiles.png_folder(raw / "good", GOOD)
    (raw / "README").write_text("ENVIRONMENT: camera room 3")
    assert hpcdeq("ingest", raw, "--archive", tmp_path / "A").code == 0
