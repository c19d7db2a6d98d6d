"""Metrics against scikit-image and the literal formulas, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hpcdeq.metrics import Scores, ergas, evaluate_all, mpsnr, sam, ssim

METRICS: list[Callable[..., float]] = [mpsnr, ssim, sam, ergas]


def images(d: int = 5, h: int = 40, w: int = 53) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w] / h
    reference = 0.5 + 0.3 * np.sin(8 * x + 5 * y * np.arange(1, d + 1)[:, None, None])
    return reference, reference + 0.1 * rng.standard_normal((d, h, w))


def test_mpsnr_is_the_mean_of_the_bands() -> None:
    x, y = images()
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, y, strict=True)])
    assert mpsnr(x, y) == pytest.approx(expected, abs=1e-9)
    assert mpsnr(x, y) != pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)


def test_ssim_equals_scikit_image() -> None:
    x, y = images()
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = np.mean([structural_similarity(a, b, **settings) for a, b in zip(x, y, strict=True)])
    assert ssim(x, y) == pytest.approx(expected, abs=1e-10)
    assert ssim(x, 1 - x) == pytest.approx(
        np.mean([structural_similarity(a, 1 - a, **settings) for a in x]), abs=1e-10
    )


def test_ssim_of_a_large_image_is_cut_and_summed_right() -> None:
    x, y = images(d=2, h=211, w=190)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    maps = [structural_similarity(a, b, full=True, **settings)[1] for a, b in zip(x, y, strict=True)]
    whole = np.stack(maps)[:, 5:-5, 5:-5]
    assert ssim(x, y) == pytest.approx(whole.mean(), abs=1e-10)
    mask = np.ones((211, 190), bool)
    mask[170, 189] = False
    counted = np.ones((201, 180), bool)
    counted[160:171, 179] = False
    assert ssim(x, y, mask) == pytest.approx(whole[:, counted].mean(), abs=1e-10)


def test_sam_and_ergas_are_their_formulas() -> None:
    x, y = images()
    dots = (x * y).sum(axis=0)
    norms = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    assert sam(x, y) == pytest.approx(np.arccos(dots / norms).mean(), abs=1e-12)
    relative = [((a - b) ** 2).mean() / a.mean() ** 2 for a, b in zip(x, y, strict=True)]
    assert ergas(x, y) == pytest.approx(100 * np.sqrt(np.mean(relative)), abs=1e-9)


def test_sam_of_known_angles() -> None:
    x = np.zeros((2, 1, 3))
    y = np.zeros((2, 1, 3))
    x[:, 0, 0], y[:, 0, 0] = (1, 0), (0, 5)  # 90 degrees
    x[:, 0, 1], y[:, 0, 1] = (1, 1), (2, 0)  # 45 degrees
    y[:, 0, 2] = 1  # undefined: the reference is zero
    assert sam(x, y) == pytest.approx((math.pi / 2 + math.pi / 4) / 2)
    assert sam(x, -x) == pytest.approx(math.pi)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda a: torch.as_tensor(a).float()])
def test_equal_images_are_perfect(convert: Callable[[Any], Any]) -> None:
    x = convert(images()[0])
    assert evaluate_all(x, x) == Scores(psnr=math.inf, ssim=1.0, sam=0.0, ergas=0.0)


def test_arrays_and_tensors_of_any_float_type_agree() -> None:
    x, y = images()
    expected = evaluate_all(x, y)
    assert evaluate_all(torch.from_numpy(x), torch.from_numpy(y).requires_grad_()) == expected
    single = evaluate_all(torch.from_numpy(x).float(), y.astype(np.float32))
    for name in ("psnr", "ssim", "sam", "ergas"):
        assert getattr(single, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    read_only = x[:, ::-1].copy()[:, ::-1]
    read_only.flags.writeable = False
    assert evaluate_all(read_only, y) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_a_mask_hides_the_rest_whatever_it_holds(metric: Callable[..., float]) -> None:
    x, y = images(h=60)
    mask = np.zeros((60, 53), bool)
    mask[:40] = True
    cropped = metric(x[:, :40], y[:, :40])
    x[:, 40:], y[:, 40:] = np.nan, 1e9
    assert metric(x, y, mask) == pytest.approx(cropped, rel=1e-12)
    assert metric(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask)) == metric(x, y, mask)


def test_a_window_with_one_invalid_pixel_does_not_count() -> None:
    x, y = images(d=1, h=21, w=21)
    mask = np.ones((21, 21), bool)
    mask[10, 10] = False  # every 11 x 11 window of a 21 x 21 image holds its centre
    assert math.isnan(ssim(x, y, mask))
    mask[10, 10], mask[0, 0] = True, False
    assert ssim(x, y, mask) != ssim(x, y)


def test_nothing_is_clamped() -> None:
    x = np.full((1, 16, 16), 0.9)
    assert mpsnr(x, x + 0.5) == pytest.approx(-20 * math.log10(0.5))


def test_ergas_leaves_out_dark_bands() -> None:
    x, y = images()
    dark = x.copy()
    dark[2] = 0
    keep = [0, 1, 3, 4]
    assert ergas(dark, y) == pytest.approx(ergas(x[keep], y[keep]))
    assert math.isnan(ergas(np.zeros_like(x), y))


def test_damage_in_an_estimate_is_not_hidden() -> None:
    x, y = images()
    y[1, 20, 20] = np.nan
    scores = evaluate_all(x, y)
    assert all(math.isnan(v) for v in (scores.psnr, scores.ssim, scores.sam, scores.ergas))


@pytest.mark.parametrize("metric", METRICS)
def test_says_what_is_wrong(metric: Callable[..., float]) -> None:
    x, y = images()
    with pytest.raises(ValueError, match=r"reference must be \(d, H, W\).*got shape \(40, 53\)"):
        metric(x[0], y[0])
    with pytest.raises(ValueError, match=r"reference's shape \(5, 40, 53\), got \(4, 40, 53\)"):
        metric(x, y[:4])
    with pytest.raises(ValueError, match=r"estimate must hold floats.*got uint8"):
        metric(x, y.astype(np.uint8))
    with pytest.raises(ValueError, match=r"mask must be \(H, W\) = \(40, 53\), got shape \(53, 40\)"):
        metric(x, y, np.ones((53, 40), bool))
    with pytest.raises(ValueError, match="no pixel to measure"):
        metric(x, y, np.zeros((40, 53), bool))


def test_ssim_of_an_image_below_its_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(10, 53\)"):
        ssim(*(a[:, :10] for a in images()))
