import numpy as np
from PIL import Image

from hpcdeq.studies.demo_scenes import WAVELENGTHS, make_scene, write_raw


def test_a_scene_is_a_function_of_its_seed():
    first, again, other = make_scene(1, 80), make_scene(1, 80), make_scene(2, 80)
    assert first.shape == (31, 80, 80)
    assert first.dtype == np.uint16
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_scene_looks_like_a_photograph_of_a_hyperspectral_camera():
    scene = make_scene(1, 130) / 65535.0
    assert 0.9 < scene.max() < 1.0
    assert np.quantile(scene, 0.1) < 0.1  # dark background
    pixels = scene.reshape(31, -1)
    energy = np.linalg.svd(pixels, compute_uv=False) ** 2
    assert energy[:8].sum() / energy.sum() > 0.9999  # few materials
    assert np.abs(np.diff(pixels, axis=0)).mean() < 0.02  # smooth spectra
    assert np.abs(np.diff(scene, axis=2)).max() > 0.1  # edges


def test_raw_files_are_named_and_typed_as_in_cave(tmp_path):
    scene = make_scene(3, 40)
    folder = write_raw(tmp_path / "table_3", scene)
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"table_3_{n:02d}.png" for n in range(1, len(WAVELENGTHS) + 1)]
    assert np.array_equal(np.asarray(Image.open(files[7])), scene[7])
