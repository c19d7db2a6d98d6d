"""Keyed random numbers: the key and nothing else decides."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from hpcdeq.noise import generator, stable_hash
from hpcdeq.noise.keyed import fill_normal


def test_golden_values() -> None:
    # A change here changes every noisy scene that studies compare, and the sample order of training.
    assert generator(0, 1, 2).integers(1 << 32, size=3).tolist() == [441296454, 2282796311, 164913946]
    values = generator(7).standard_normal(3, dtype=np.float32)
    np.testing.assert_allclose(
        values, [-0.9177600145339966, 0.10006245225667953, -0.5161933302879333], rtol=1e-6
    )
    assert stable_hash("stuffed_toys") == 2229013632290045451


def test_same_in_another_process() -> None:
    code = "from hpcdeq.noise import *; print(generator(5, -3, 2**80).random(), stable_hash('é'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(generator(5, -3, 2**80).random()), str(stable_hash("é"))]


def test_keys_of_other_order_length_or_sign_are_other_streams() -> None:
    keys = [(), (0,), (1, 2), (2, 1), (12,), (1, 2, 0), (-1, 2), (1, -2)]
    first = {generator(*key).random() for key in keys}
    assert len(first) == len(keys)


def test_numpy_integers_are_integers() -> None:
    assert generator(np.int64(3)).random() == generator(3).random()


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError):
        generator(1.5)  # type: ignore[arg-type]


def test_neighbouring_keys_are_uncorrelated() -> None:
    draws = np.stack([generator(1, i).standard_normal(20_000) for i in range(20)])
    correlation = np.corrcoef(draws) - np.eye(20)
    assert abs(correlation).max() < 0.04


def test_stable_hash_is_a_non_negative_64_bit_integer() -> None:
    hashes = [stable_hash(f"scene_{i}") for i in range(1000)]
    assert len(set(hashes)) == 1000
    assert all(0 <= h < 2**63 for h in hashes)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = np.full(shape, np.nan, np.float32)
    fill_normal(rng, values)
    return values


def test_normal_numbers_are_standard_normal() -> None:
    values = normal(generator(1, 2), (31, 400, 401))
    assert values.shape == (31, 400, 401)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    flat = values.ravel().astype(np.float64)
    count = flat.size
    assert abs(flat.mean()) < 4 / np.sqrt(count)
    assert abs(flat.var() - 1) < 4 * np.sqrt(2 / count)
    assert abs((flat**3).mean()) < 4 * np.sqrt(15 / count)
    assert abs((flat**4).mean() - 3) < 4 * np.sqrt(96 / count)
    # Both halves of the transform, and neighbours, are independent.
    half = count // 2
    for a, b in ((flat[:half], flat[half : 2 * half]), (flat[:-1], flat[1:])):
        assert abs((a * b).mean()) < 4 / np.sqrt(len(a))
        assert abs((a**2 * b**2).mean() - 1) < 20 / np.sqrt(len(a))
    for edge, share in ((1, 0.3173105), (2, 0.0455003), (3, 0.0026998), (4, 6.334e-5)):
        assert abs((np.abs(flat) > edge).mean() - share) < 4 * np.sqrt(share / count)


def test_normal_numbers_of_odd_shapes_and_the_same_key_agree() -> None:
    assert np.array_equal(normal(generator(3), (3, 5, 7)), normal(generator(3), (105,)).reshape(3, 5, 7))
    assert normal(generator(3), (1,)).shape == (1,)
