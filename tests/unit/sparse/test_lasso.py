"""The Lasso: solutions by certificate and by another solver, at every edge, the same bytes in any batch."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from hpcdeq.sparse import lasso

module = importlib.import_module("hpcdeq.sparse.lasso")


def unit_atoms(d: int, m: int, coherence: float = 0.0) -> Tensor:
    atoms = torch.randn(d, m, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    atoms = atoms + coherence * torch.ones(d, 1, dtype=torch.float64)
    return atoms / atoms.norm(dim=0)


def spectra(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, d, dtype=dtype, generator=torch.Generator().manual_seed(2))


def relative_gap(y: np.ndarray, atoms: np.ndarray, g: np.ndarray, penalty: float) -> float:
    """Duality gap by its definition."""
    residual = y - atoms @ g
    primal = 0.5 * residual @ residual + penalty * np.abs(g).sum()
    dual_point = residual * min(1.0, penalty / np.abs(atoms.T @ residual).max())
    dual = 0.5 * y @ y - 0.5 * (y - dual_point) @ (y - dual_point)
    return float((primal - dual) / (0.5 * y @ y))


@pytest.mark.parametrize("penalty", [0.5, 0.01])
@pytest.mark.parametrize("coherence", [0.0, 2.0])
def test_the_gap_is_what_it_says_and_below_the_tolerance(penalty: float, coherence: float) -> None:
    """Atoms of coherence 2 have cosines about 0.8, as those of spectra have."""
    atoms, signals = unit_atoms(31, 128, coherence), spectra(20, 31)
    result = lasso(signals, atoms, penalty, tolerance=1e-11)
    assert bool(result.converged.all())
    for y, g, gap in zip(signals.numpy(), result.coefficients.numpy(), result.gap.tolist(), strict=True):
        true = relative_gap(y, atoms.numpy(), g, penalty)
        assert true <= 1.1e-11
        assert gap == pytest.approx(true, abs=1e-14)


def test_the_gap_of_a_solution_in_32_bits_is_true_to_its_tolerance() -> None:
    atoms, signals = unit_atoms(31, 128, 2.0).float(), spectra(20, 31, torch.float32)
    result = lasso(signals, atoms, 0.05)
    assert bool(result.converged.all())
    for y, g in zip(signals.double().numpy(), result.coefficients.double().numpy(), strict=True):
        assert relative_gap(y, atoms.double().numpy(), g, 0.05) <= 1.2e-5


@pytest.mark.parametrize("penalty", [0.3, 0.03])
def test_equals_scikit_learn(penalty: float) -> None:
    atoms, signals = unit_atoms(31, 128), spectra(20, 31)
    result = lasso(signals, atoms, penalty, tolerance=1e-13)
    solver = Lasso(alpha=penalty / 31, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
    for y, g in zip(signals.numpy(), result.coefficients.numpy(), strict=True):
        expected = solver.fit(atoms.numpy(), y).coef_
        assert abs(g - expected).max() < 1e-6


def test_a_small_penalty_finds_the_atoms_that_a_signal_is_made_of() -> None:
    """Three atoms, exact recovery condition met: the support is theirs, the coefficients short by about the penalty."""
    atoms = unit_atoms(64, 96)
    made_of = [7, 50, 11]
    others = [j for j in range(96) if j not in made_of]
    condition = (torch.linalg.pinv(atoms[:, made_of]) @ atoms[:, others]).abs().sum(dim=0).max()
    assert condition < 1
    signal = atoms[:, made_of] @ torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64)
    penalty = 1e-3
    g = lasso(signal[None], atoms, penalty, tolerance=1e-12).coefficients[0]
    assert g.nonzero().flatten().tolist() == sorted(made_of)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    gram = atoms[:, made_of].T @ atoms[:, made_of]
    expected = torch.tensor([3.0, -2.0, 0.5], dtype=torch.float64) - penalty * torch.linalg.solve(gram, sign)
    torch.testing.assert_close(g[made_of], expected, rtol=0, atol=1e-8)


def test_from_the_largest_correlation_on_the_solution_is_zero() -> None:
    atoms, signals = unit_atoms(31, 128), spectra(1, 31)
    largest = float((signals @ atoms).abs().max())
    result = lasso(signals, atoms, largest * (1 + 1e-12))
    assert not bool(result.coefficients.any())
    assert result.iterations.tolist() == [0]
    assert bool(lasso(signals, atoms, largest * 0.99).coefficients.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_do_not_depend_on_the_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms, signals = unit_atoms(31, 128, 2.0).to(dtype), spectra(141, 31, dtype)
    whole = lasso(signals, atoms, 0.3)
    assert len(set(whole.iterations.tolist())) > 3, "signals must leave at different times"
    for batch in (1, 7, 64):
        parts = [lasso(part, atoms, 0.3) for part in signals.split(batch)[:4]]
        n = sum(len(part.gap) for part in parts)
        for field in ("coefficients", "gap", "iterations"):
            assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field)[:n])
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS_CPU", 128 * 13)
    chunked = lasso(signals.flip(0), atoms, 0.3)
    assert torch.equal(chunked.coefficients.flip(0), whole.coefficients)


def test_zero_signals_repeated_atoms_and_no_signals() -> None:
    atoms = unit_atoms(5, 8).repeat(1, 2)
    signals = torch.cat([torch.zeros(1, 5, dtype=torch.float64), atoms[:, :4].T, spectra(20, 5)])
    result = lasso(signals, atoms, 1e-3, tolerance=1e-10)
    assert not bool(result.coefficients[0].any())
    assert bool(result.converged.all())
    for y, g in zip(signals[1:].numpy(), result.coefficients[1:].numpy(), strict=True):
        assert relative_gap(y, atoms.numpy(), g, 1e-3) <= 1.1e-10
    assert lasso(signals[:0], atoms, 0.1).coefficients.shape == (0, 16)


def test_one_that_may_not_go_on_says_how_far_it_came() -> None:
    atoms, signals = unit_atoms(31, 128), spectra(5, 31)
    result = lasso(signals, atoms, 0.01, iterations=3)
    assert not bool(result.converged.any())
    assert result.iterations.tolist() == [3] * 5
    for y, g, gap in zip(signals.numpy(), result.coefficients.numpy(), result.gap.tolist(), strict=True):
        assert gap == pytest.approx(relative_gap(y, atoms.numpy(), g, 0.01), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_coefficients_have_the_type_of_the_signals(dtype: torch.dtype) -> None:
    result = lasso(spectra(3, 31).to(dtype), unit_atoms(31, 64), 0.3)
    assert result.coefficients.dtype == dtype
    assert bool(result.converged.all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"penalty": 0.0}, "penalty must be a finite number, positive, got 0.0"),
        ({"penalty": float("nan")}, "penalty must be a finite number"),
        ({"tolerance": 0.0}, "tolerance must be a positive number"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"signals": torch.zeros(31)}, r"signals must be \(N, d\)"),
        ({"signals": torch.full((2, 31), torch.nan)}, "signals must be finite"),
        ({"dictionary": torch.ones(31, 5)}, "atoms must have norm 1"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], words: str) -> None:
    arguments = {"signals": spectra(2, 31), "dictionary": unit_atoms(31, 64), "penalty": 0.1} | change
    with pytest.raises(ValueError, match=words):
        lasso(**arguments)  # type: ignore[arg-type]
