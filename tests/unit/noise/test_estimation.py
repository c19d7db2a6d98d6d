"""The noise estimate: right within 10 % where noise matters, and honest about what it cannot see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hpcdeq.noise import Complex, Gaussian, add_noise, estimate_sigma


def generated_scene(bands: int = 8, edge: int = 256) -> NDArray[np.float32]:
    """Discs with edges on a gradient, and a patch of fine texture."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:edge, :edge] / edge
    scene = np.repeat((0.2 + 0.5 * x * y)[None], bands, axis=0)
    for _ in range(40):
        cy, cx, r = rng.uniform(0, 1, 3) * (1, 1, 0.15)
        scene[:, (y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.uniform(0, 1, (bands, 1))
    scene[:, : edge // 4, : edge // 4] += 0.1 * rng.standard_normal((edge // 4, edge // 4))
    return scene.astype(np.float32)


@pytest.mark.parametrize("sigma", [10, 30, 50, 70])
def test_within_ten_percent(sigma: float) -> None:
    noisy, truth = add_noise(generated_scene(), Gaussian(sigma=sigma), (1,))
    estimate = estimate_sigma(noisy)
    # The texture reads as noise; each band scatters around that.
    np.testing.assert_allclose(estimate.mean(), truth.mean(), rtol=0.1)
    np.testing.assert_allclose(estimate, truth, rtol=0.12)


def test_within_ten_percent_in_every_band_of_non_iid_noise_with_stripes_and_dead_columns() -> None:
    for case in ("non_iid", "stripe", "deadline"):
        noisy, truth = add_noise(generated_scene(31), Complex(case=case), (2,))
        np.testing.assert_allclose(estimate_sigma(noisy), truth, rtol=0.1)


def test_exact_on_a_clean_smooth_scene_and_scales_with_the_data() -> None:
    y, x = np.mgrid[:64, :64].astype(np.float32) / 64
    assert estimate_sigma((1 + x + y)[None])[0] < 1e-6
    noisy, _ = add_noise(generated_scene(), Gaussian(sigma=30), (1,))
    np.testing.assert_allclose(estimate_sigma(1000 * noisy), 1000 * estimate_sigma(noisy), rtol=1e-5)


def test_pixels_without_data_are_left_out() -> None:
    noisy, truth = add_noise(generated_scene(2), Gaussian(sigma=30), (1,))
    noisy[:, :200] = 0
    noisy[1] = 0
    estimate = estimate_sigma(noisy)
    assert estimate[0] == pytest.approx(truth[0], rel=0.1)
    assert estimate[1] == 0


def test_odd_sizes_and_strange_shapes() -> None:
    noisy, truth = add_noise(np.full((1, 201, 199), 0.5, np.float32), Gaussian(sigma=30), (1,))
    assert estimate_sigma(noisy)[0] == pytest.approx(truth[0], rel=0.05)
    for shape in ((4, 4), (3, 1, 9)):
        with pytest.raises(ValueError, match="at least 2 x 2 pixels, got shape"):
            estimate_sigma(np.zeros(shape, np.float32))


def test_within_twelve_percent_on_real_scenes(real_data: Path) -> None:
    for name in ("cloth_ms", "beads_ms"):  # the two with the finest texture
        files = sorted((real_data / "cave" / "train" / name).glob("*.png"))[::6]
        clean = np.stack([np.asarray(Image.open(p), np.float32) / 65535 for p in files])
        for sigma in (10, 70):
            noisy, truth = add_noise(clean, Gaussian(sigma=sigma), (1,))
            np.testing.assert_allclose(estimate_sigma(noisy), truth, rtol=0.12)
