"""Degradations: the right statistics, the same bytes for a key, one structure for all strips of a scene."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from hpcdeq.noise import Complex, Degradation, Gaussian, add_noise

COMPLEX = [Complex(case=case) for case in ("non_iid", "stripe", "deadline", "impulse", "mixture")]
ALL = [Gaussian(sigma=50), Gaussian(sigma=(30, 50)), Gaussian(sigma_range=(10, 70)), *COMPLEX]


def grey(d: int = 31, h: int = 64, w: int = 200) -> NDArray[np.float32]:
    return np.full((d, h, w), 0.5, np.float32)


def quiet(case: Any) -> Complex:
    """The structure alone: Gaussian part switched off."""
    return Complex(case=case, sigma_range=(0, 0))


@pytest.mark.parametrize(("sigma", "expected"), [(30, 18.588), (50, 14.151), (70, 11.229)])
def test_noisy_psnr_is_the_theory(sigma: float, expected: float) -> None:
    clean = grey(31, 512, 512)
    noisy, _ = add_noise(clean, Gaussian(sigma=sigma), (0, 1))
    mse = ((noisy.astype(np.float64) - clean) ** 2).mean(axis=(1, 2))
    assert (-10 * np.log10(mse)).mean() == pytest.approx(expected, abs=0.01)


def test_gaussian_noise_is_white_centred_and_not_clipped() -> None:
    clean = grey(4, 256, 256)
    noise = add_noise(clean, Gaussian(sigma=100), (3,))[0] - clean
    assert abs(noise.mean()) < 0.005
    assert noise.min() < -1
    assert noise.max() > 1
    for axis in range(3):
        near = np.take(noise, range(1, noise.shape[axis]), axis) * np.take(
            noise, range(noise.shape[axis] - 1), axis
        )
        assert abs(near.mean()) / noise.var() < 0.01


@pytest.mark.parametrize("degradation", ALL)
def test_key_and_strip_decide(degradation: Degradation) -> None:
    clean = grey()
    first, sigma = add_noise(clean, degradation, (1, 2), strip=3)
    again, _ = add_noise(clean, degradation, (1, 2), strip=3)
    assert first.tobytes() == again.tobytes()
    assert first.dtype == sigma.dtype == np.float32
    assert sigma.shape == (31,)
    assert (clean == 0.5).all()
    other_strip, other_sigma = add_noise(clean, degradation, (1, 2), strip=4)
    assert not np.array_equal(first, other_strip)
    assert np.array_equal(sigma, other_sigma)
    assert not np.array_equal(first, add_noise(clean, degradation, (1, 3), strip=3)[0])


def test_noise_does_not_depend_on_the_pixels() -> None:
    dark, light = np.zeros((3, 8, 8), np.float32), np.full((3, 8, 8), 0.5, np.float32)
    noises = [add_noise(c, Gaussian(sigma=50), (1,))[0] - c for c in (dark, light)]
    np.testing.assert_allclose(*noises, atol=1e-6)


@pytest.mark.parametrize("case", ["stripe", "deadline", "mixture"])
def test_strips_of_other_heights_share_their_columns(case: str) -> None:
    changed = []
    for strip, height in enumerate((260, 260, 100)):
        noisy, _ = add_noise(grey(h=height), quiet(case), (9,), strip)
        changed.append((noisy != 0.5).mean(axis=1) == 1)  # whole columns
    assert np.array_equal(changed[0], changed[1])
    assert np.array_equal(changed[0], changed[2])
    assert changed[0].any()


def test_a_list_gives_every_level_and_nothing_else() -> None:
    clean = grey(1, 2, 2)
    drawn = [add_noise(clean, Gaussian(sigma=(30, 50, 70)), (i,))[1][0] * 255 for i in range(300)]
    levels, counts = np.unique(np.round(drawn, 3), return_counts=True)
    assert levels.tolist() == [30, 50, 70]
    assert counts.min() > 70


def test_a_range_is_uniform_and_one_level_a_block() -> None:
    clean = grey(2, 2, 2)
    drawn = np.array([add_noise(clean, Gaussian(sigma_range=(10, 70)), (i,))[1] for i in range(2000)]) * 255
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    assert drawn.min() >= 10
    assert drawn.max() <= 70
    counts, _ = np.histogram(drawn[:, 0], bins=6, range=(10, 70))
    assert abs(counts - 2000 / 6).max() < 90


def test_non_iid_levels_differ_by_band_and_are_those_reported() -> None:
    clean = grey(31, 256, 256)
    noisy, sigma = add_noise(clean, Complex(case="non_iid"), (4,))
    assert len(np.unique(sigma)) == 31
    assert 10 <= sigma.min() * 255 < 25
    assert 55 < sigma.max() * 255 <= 70
    np.testing.assert_allclose((noisy - clean).std(axis=(1, 2)), sigma, rtol=0.02)


@pytest.mark.parametrize("case", ["non_iid", "stripe", "deadline", "impulse", "mixture"])
def test_how_many_bands_are_hit(case: str) -> None:
    for key in range(20):
        noisy, _ = add_noise(grey(), quiet(case), (key,))
        hit = (noisy != 0.5).any(axis=(1, 2)).sum()
        assert hit == {"non_iid": 0, "mixture": 30}.get(case, 10)


def test_stripes_shift_whole_columns_by_at_most_a_quarter() -> None:
    shares, shifts = [], []
    for key in range(20):
        noisy, _ = add_noise(grey(), quiet("stripe"), (key,))
        assert (noisy == noisy[:, :1]).all()
        for band in noisy[(noisy != 0.5).any(axis=(1, 2))]:
            moved = band[0][band[0] != 0.5] - 0.5
            shares.append(len(moved) / 200)
            shifts.extend(moved)
    assert 0.05 <= min(shares) <= 0.055
    assert 0.145 <= max(shares) <= 0.15
    assert max(np.abs(shifts)) <= 0.25
    assert np.std(shifts) == pytest.approx(0.5 / np.sqrt(12), rel=0.05)
    assert abs(np.mean(shifts)) < 0.01


def test_dead_columns_are_zero_even_under_gaussian_noise() -> None:
    noisy, _ = add_noise(grey(), Complex(case="deadline"), (2,))
    dead = (noisy == 0).all(axis=1)
    counts = dead.sum(axis=1)
    assert (counts > 0).sum() == 10
    assert ((counts[counts > 0] >= 10) & (counts[counts > 0] <= 30)).all()
    assert (noisy == 0).sum() == dead.sum() * 64


def test_impulses_are_half_salt_half_pepper_at_the_four_ratios() -> None:
    seen = set()
    for key in range(8):
        noisy, _ = add_noise(grey(h=100), quiet("impulse"), (key,))
        for band in noisy[(noisy != 0.5).any(axis=(1, 2))]:
            salt, pepper = (band == 1).mean(), (band == 0).mean()
            ratio = min((0.1, 0.3, 0.5, 0.7), key=lambda r: abs(salt + pepper - r))
            assert salt == pytest.approx(ratio / 2, abs=0.02)
            assert pepper == pytest.approx(ratio / 2, abs=0.02)
            assert ((band == 0.5) | (band == 0) | (band == 1)).all()
            seen.add(ratio)
    assert seen == {0.1, 0.3, 0.5, 0.7}


def test_the_mixture_hits_every_band_with_one_kind_at_most() -> None:
    noisy, _ = add_noise(grey(), quiet("mixture"), (6,))
    column_wise = (noisy == noisy[:, :1]).all(axis=(1, 2)) & (noisy != 0.5).any(axis=(1, 2))
    dead = column_wise & ((noisy == 0) | (noisy == 0.5)).all(axis=(1, 2))
    impulse = ~column_wise & (noisy != 0.5).any(axis=(1, 2))
    assert (dead.sum(), column_wise.sum() - dead.sum(), impulse.sum()) == (10, 10, 10)


@pytest.mark.parametrize("degradation", ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (3, 1, 5)])
def test_tiny_blocks_work(degradation: Degradation, shape: tuple[int, int, int]) -> None:
    noisy, sigma = add_noise(np.zeros(shape, np.float32), degradation, (1,))
    assert noisy.shape == shape
    assert np.isfinite(noisy).all()
    assert sigma.shape == shape[:1]


@pytest.mark.parametrize("clean", [np.zeros((3, 4, 5)), np.zeros((4, 5), np.float32)])
def test_other_arrays_are_refused(clean: Any) -> None:
    with pytest.raises(ValueError, match=r"\(d, h, w\) float32, got shape"):
        add_noise(clean, Gaussian(sigma=1), (1,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either sigma or sigma_range"),
        ({"sigma": 5, "sigma_range": (1, 2)}, "either sigma or sigma_range"),
        ({"sigma": -1}, "from 0 to 255.*got -1"),
        ({"sigma": float("nan")}, "from 0 to 255.*got nan"),
        ({"sigma": (10, 256)}, "from 0 to 255.*got 256"),
        ({"sigma": ()}, "at least one level"),
        ({"sigma_range": (70, 10)}, r"\(least, most\), got \(70, 10\)"),
        ({"sigma_range": (-5, 10)}, "sigma_range must be from 0 to 255.*got -5"),
        ({"kind": "complex", "sigma": 5}, "kind must be 'gaussian'"),
    ],
)
def test_gaussian_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gaussian(**settings)


def test_complex_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="one of non_iid, stripe, deadline, impulse, mixture, got 'rain'"):
        Complex(case="rain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0 to 255"):
        Complex(case="stripe", sigma_range=(10, 300))


def test_settings_work_in_a_pydantic_tree() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[Gaussian | Complex, Field(discriminator="kind")])
    assert adapter.validate_python({"kind": "gaussian", "sigma": [30, 50]}) == Gaussian(sigma=(30.0, 50.0))
    assert adapter.validate_python({"kind": "complex", "case": "mixture"}) == Complex(case="mixture")
    for bad in ({"kind": "gaussian", "sgma": 3}, {"kind": "gaussian", "sigma": 300}, {"kind": "rain"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)
    dumped = adapter.dump_python(Gaussian(sigma=50.0), mode="json")
    assert adapter.validate_python(dumped) == Gaussian(sigma=50.0)
