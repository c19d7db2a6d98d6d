"""Whole shards are decoded without Zarr's machinery: the same values, and no damage goes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdeq.archive import Archive, Scene, open_archive
from hpcdeq.archive.layout import SceneHeader
from hpcdeq.archive.validate import check_scene
from hpcdeq.errors import ArchiveError, SceneError
from hpcdeq.tiling import Window
from tests.conftest import add_scene


def through_zarr(scene: Scene, window) -> np.ndarray:
    return np.asarray(scene.radiance[(slice(None), *window.slices)])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_shards_are_what_zarr_reads(tmp_path, dtype: str) -> None:
    archive = open_archive(tmp_path / "a.zarr", create=True)
    values = np.random.default_rng(0).uniform(0, 100, (3, 300, 141)).astype(dtype)
    values[:, :70, :70] = 0  # a chunk of nothing but the fill value
    draft = archive.draft("scene", SceneHeader(shape=values.shape, dtype=np.dtype(dtype)))
    for window in draft.scene.shards():
        draft.write(window, values[(slice(None), *window.slices)])
    draft.publish()
    scene = archive["scene"]
    for window in scene.shards():
        found = scene.stored(window)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values[(slice(None), *window.slices)])
        assert np.array_equal(found, through_zarr(scene, window))


def test_a_chunk_that_was_never_written_is_zeros(archive: Archive) -> None:
    scene = archive["scene1"]
    window = next(scene.shards())
    file = scene.shard_path(window)
    file.unlink()
    array = zarr.open_array(scene.path / "radiance", mode="r+", config={"write_empty_chunks": False})
    array[:, :65, :65] = 1.0
    assert np.array_equal(scene.stored(window), through_zarr(scene, window))
    assert scene.stored(window)[:, 65:].max() == 0


def test_other_chunks_and_codecs_are_read(archive: Archive) -> None:
    scene = archive["scene1"]
    group = zarr.open_group(scene.path, mode="r+")
    pixels = scene.stored()
    attributes = dict(scene.radiance.attrs)
    del group["radiance"]
    array = group.create_array(
        "radiance", data=pixels, chunks=(7, 30, 30), shards=(7, 90, 90), attributes=attributes
    )
    again = archive["scene1"]
    assert array.shards == (7, 90, 90)
    assert np.array_equal(again.stored(next(again.shards())), pixels)


@given(data=st.data())
@settings(max_examples=60)
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, data) -> None:
    archive = open_archive(tmp_path_factory.mktemp("flip") / "a.zarr", create=True)
    add_scene(archive, "scene", np.random.default_rng(1).uniform(size=(2, 70, 80)).astype(np.float32))
    scene = archive["scene"]
    window = next(scene.shards())
    file = scene.shard_path(window)
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    with pytest.raises(SceneError, match="cannot read rows 0:70, columns 0:80: stored crc32c"):
        scene.stored(window)


@pytest.mark.parametrize("kept", [0, 3, 50, -1])
def test_a_truncated_shard_is_an_error(archive: Archive, kept: int) -> None:
    scene = archive["scene1"]
    window = next(scene.shards())
    file = scene.shard_path(window)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(SceneError, match="cannot read rows"):
        scene.stored(window)


def test_a_lost_shard_is_an_error_not_zeros(archive: Archive) -> None:
    scene = archive["scene1"]
    window = next(scene.shards())
    scene.shard_path(window).unlink()
    with pytest.raises(SceneError, match="No such file"):
        scene.stored(window)


def test_a_shard_without_any_data_is_written(archive: Archive) -> None:
    """A swath's corner, all masked: zeros are data, a missing file is not."""
    values = np.ones((7, 400, 70), np.float32)
    values[:, :325] = 0
    add_scene(archive, "corner", values, valid=values[0] != 0)
    scene = archive["corner"]
    assert all(scene.shard_path(window).is_file() for window in scene.shards())
    assert np.array_equal(scene.read(), values)
    assert list(check_scene(scene)) == []


def test_scenes_whose_shards_have_equal_sizes_differ_by_their_digests(tmp_path) -> None:
    """Noise does not compress: only the pixels differ, to which the crc32c of a file of chunks with their own crc32c is blind."""
    archive = open_archive(tmp_path / "a.zarr", create=True)
    for seed in range(3):
        add_scene(archive, f"noise_{seed}", np.random.default_rng(seed).random((4, 65, 65)))
    scenes = archive.scenes()
    assert len({scene.shard_path(scene.extent).stat().st_size for scene in scenes}) == 1
    assert len({scene.content_sha256 for scene in scenes}) == len({scene.digest for scene in scenes}) == 3


def test_a_sound_shard_of_another_scene_is_found(tmp_path) -> None:
    archive = open_archive(tmp_path / "a.zarr", create=True)
    for seed in range(2):
        add_scene(archive, f"noise_{seed}", np.random.default_rng(seed).random((4, 65, 65)))
    one, other = archive.scenes()
    one.shard_path(one.extent).write_bytes(other.shard_path(other.extent).read_bytes())
    (problem,) = check_scene(one)
    assert "not" in problem.message
    assert "as written" in problem.message


def test_an_archive_of_an_older_schema_is_refused_with_what_to_do(tmp_path) -> None:
    open_archive(tmp_path / "a.zarr", create=True)
    root = tmp_path / "a.zarr/zarr.json"
    root.write_text(root.read_text().replace('"hpcdeq_schema": 2', '"hpcdeq_schema": 1'))
    with pytest.raises(
        ArchiveError, match="has schema 1; this version reads schema 2: make it again from its source"
    ):
        open_archive(tmp_path / "a.zarr")


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@given(data=st.data())
@settings(max_examples=30)
def test_any_window_is_what_zarr_reads(tmp_path_factory, dtype: str, data) -> None:
    archive = open_archive(tmp_path_factory.mktemp("windows") / "a.zarr", create=True)
    values = np.random.default_rng(0).uniform(0, 100, (2, 400, 141)).astype(dtype)
    draft = archive.draft("scene", SceneHeader(shape=values.shape, dtype=np.dtype(dtype)))
    for window in draft.scene.shards():
        draft.write(window, values[(slice(None), *window.slices)])
    draft.publish()
    y0, x0 = data.draw(st.integers(0, 399)), data.draw(st.integers(0, 140))
    window = Window(y0, data.draw(st.integers(y0 + 1, 400)), x0, data.draw(st.integers(x0 + 1, 141)))
    assert np.array_equal(archive["scene"].stored(window), values[(slice(None), *window.slices)])


def test_a_lost_shard_is_an_error_where_a_window_has_a_part_of_it(archive: Archive) -> None:
    scene = archive["scene0"]
    lost, there = [window for window in scene.shards() if window.y0 == 0], Window(325, 400, 0, 140)
    scene.stored(Window(0, 400, 0, 140))
    scene.shard_path(lost[0]).unlink()
    scene.stored(there)
    with pytest.raises(SceneError, match="radiance/c/0/0/0"):
        scene.stored(Window(lost[0].y1 - 10, 400, 0, 140))


@pytest.mark.parametrize("lost", ["valid_mask/c/0/0", "wavelength/c/0", "fwhm/c/0", "shard_checksum/c/0/0"])
@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_what_lies_beside_the_pixels_is_read_or_an_error(tmp_path, lost: str, damage: str) -> None:
    archive = open_archive(tmp_path / "a.zarr", create=True)
    nm = np.linspace(400, 700, 3)
    header = SceneHeader(
        shape=(3, 70, 80), dtype=np.dtype("uint16"), wavelengths=nm, fwhm=nm / 100, has_mask=True
    )
    draft = archive.draft("scene", header)
    draft.write(draft.scene.extent, np.ones((3, 70, 80), np.uint16))
    draft.write_mask(draft.scene.extent, np.ones((70, 80), bool))
    draft.publish()
    file = archive.path / "scene" / lost
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:5])
    scene = archive["scene"]
    read = {
        "valid_mask": scene.valid_mask,
        "wavelength": lambda: scene.wavelengths,
        "fwhm": lambda: scene.fwhm,
        "shard_checksum": lambda: scene.shard_checksums,
    }
    name = lost.partition("/")[0]
    with pytest.raises(SceneError, match=f"scene scene: cannot read {name}: "):
        read[name]()
