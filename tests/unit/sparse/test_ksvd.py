"""K-SVD: as good a dictionary as scikit-learn's, unit norms, fixed signs, and the same bytes on repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor

from hpcdeq.sparse import KSvdSettings, batch_omp, learn_dictionary


def generated_spectra(n: int = 4000) -> Tensor:
    """Mixtures of a few smooth spectra with a little noise, as pixels are."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 31)
    centres, widths = rng.uniform(0, 1, (40, 1)), rng.uniform(0.05, 0.4, (40, 1))
    basis = np.exp(-(((x - centres) / widths) ** 2))
    weights = rng.gamma(0.5, size=(n, 40)) * (rng.random((n, 40)) < 0.1)
    return torch.from_numpy(0.1 * weights @ basis + 0.002 * rng.standard_normal((n, 31))).float()


def real_spectra(root: Path, n: int = 1000) -> Tensor:
    rng = np.random.default_rng(0)
    parts = []
    for scene in sorted((root / "cave" / "train").iterdir())[:4]:
        bands = [np.asarray(Image.open(p), np.float32) / 65535 for p in sorted(scene.glob("*.png"))]
        pixels = np.stack(bands).reshape(31, -1).T
        parts.append(pixels[rng.choice(len(pixels), n, replace=False)])
    return torch.from_numpy(np.concatenate(parts))


def rms_error(signals: Tensor, dictionary: Tensor, sparsity: int) -> float:
    codes = batch_omp(signals, dictionary, sparsity)
    coded = torch.einsum("nk,nkd->nd", codes.coefficients, dictionary.T[codes.support])
    return float((signals - coded).square().mean().sqrt())


@pytest.mark.parametrize("spectra", ["generated", "real"])
def test_codes_as_well_as_scikit_learn(spectra: str, request: pytest.FixtureRequest) -> None:
    real = spectra == "real"
    signals = real_spectra(request.getfixturevalue("real_data")) if real else generated_spectra()
    ours = learn_dictionary(signals, KSvdSettings(atoms=64, sparsity=4)).dictionary
    peer = MiniBatchDictionaryLearning(
        n_components=64,
        alpha=0.1,  # the best of 1e-4 to 0.1 for both
        max_iter=20,
        batch_size=256,
        fit_algorithm="lars",
        random_state=0,
    ).fit(signals.numpy())
    theirs = torch.from_numpy(peer.components_.T.astype(np.float32))
    theirs = theirs[:, theirs.norm(dim=0) > 0]
    theirs = theirs / theirs.norm(dim=0)
    assert rms_error(signals, ours, 4) <= 1.05 * rms_error(signals, theirs, 4)


def test_unit_norms_fixed_signs_and_falling_errors() -> None:
    signals = generated_spectra()
    result = learn_dictionary(signals, KSvdSettings(atoms=128, sparsity=5, iterations=6))
    atoms = result.dictionary
    assert atoms.shape == (31, 128)
    assert atoms.is_contiguous()
    torch.testing.assert_close(atoms.norm(dim=0), torch.ones(128), rtol=0, atol=1e-5)
    assert (atoms.gather(0, atoms.abs().argmax(dim=0, keepdim=True)) > 0).all()
    assert len(result.errors) == 6
    assert result.errors[-1] < 0.8 * result.errors[0]


def test_errors_are_the_root_mean_square_of_what_is_left() -> None:
    signals = generated_spectra(600)
    result = learn_dictionary(signals, KSvdSettings(atoms=32, sparsity=3, iterations=1))
    # Coding anew with the updated atoms may choose better supports, and hardly ever worse ones.
    assert result.errors[0] == pytest.approx(rms_error(signals, result.dictionary, 3), rel=0.1)


def test_same_bytes_on_repeat_and_others_for_another_seed() -> None:
    signals = generated_spectra(2000)
    first, again, other = (
        learn_dictionary(signals, KSvdSettings(atoms=64, iterations=4, seed=seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first.dictionary, again.dictionary)
    assert first.errors == again.errors
    assert not torch.equal(first.dictionary, other.dictionary)


def test_finds_the_dictionary_that_made_the_signals() -> None:
    rng = torch.Generator().manual_seed(5)
    truth = torch.randn(20, 30, generator=rng)
    truth /= truth.norm(dim=0)
    codes = torch.zeros(3000, 30)
    for row in codes:
        row[torch.randperm(30, generator=rng)[:2]] = torch.randn(2, generator=rng)
    found = learn_dictionary(codes @ truth.T, KSvdSettings(atoms=30, sparsity=2, iterations=20)).dictionary
    closest = (truth.T @ found).abs().max(dim=1).values
    # K-SVD ends in a local optimum: 24 to 28 of the 30 are found, by the seed.
    assert (closest > 0.99).sum() >= 22


def test_idle_and_duplicate_atoms_are_replaced() -> None:
    # 60 copies of one spectrum: most first atoms are equal, and the other signals must take their places.
    signals = generated_spectra(70)
    signals[10:] = signals[0]
    result = learn_dictionary(signals, KSvdSettings(atoms=40, sparsity=1, iterations=4))
    assert result.errors[-1] < 1e-6
    assert result.errors[0] > 1e-4


def test_real_size_is_fast_and_exact_enough(real_data: Path) -> None:
    signals = real_spectra(real_data, 1500)
    result = learn_dictionary(signals, KSvdSettings(iterations=3))
    assert result.dictionary.shape == (31, 512)
    assert result.errors[-1] < 0.004


def test_too_few_signals_are_refused() -> None:
    signals = generated_spectra(100)
    signals[50:] = 0
    with pytest.raises(ValueError, match="64 atoms need as many non-zero signals, and 50 of 100 are"):
        learn_dictionary(signals, KSvdSettings(atoms=64))


def test_sparsity_above_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the signals' length 3, got 5"):
        learn_dictionary(torch.rand(50, 3), KSvdSettings(atoms=8))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"atoms": 0}, "atoms must be at least 1, got 0"),
        ({"sparsity": 0}, "sparsity must be from 1 to atoms = 512, got 0"),
        ({"atoms": 4}, "sparsity must be from 1 to atoms = 4, got 5"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_settings_are_checked(bad: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KSvdSettings(**bad)
