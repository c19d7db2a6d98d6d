"""Batch OMP: the greedy answer, the same bytes for every batch, and no surprises at the edges."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from hpcdeq.sparse import OmpResult, batch_omp, pursuit


def unit_atoms(d: int, m: int, dtype: torch.dtype = torch.float64) -> Tensor:
    atoms = torch.randn(d, m, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return atoms / atoms.norm(dim=0)


def spectra(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, d, dtype=dtype, generator=torch.Generator().manual_seed(2))


def dense(codes: OmpResult, m: int) -> Tensor:
    out = torch.zeros(len(codes.support), m, dtype=codes.coefficients.dtype)
    return out.scatter_(1, codes.support, codes.coefficients)


@pytest.mark.parametrize("sparsity", [1, 5, 16, 31])
def test_equals_scikit_learn(sparsity: int) -> None:
    atoms, signals = unit_atoms(31, 128), spectra(300, 31)
    expected = orthogonal_mp_gram(
        (atoms.T @ atoms).numpy(), (atoms.T @ signals.T).numpy(), n_nonzero_coefs=sparsity
    ).T
    got = dense(batch_omp(signals, atoms, sparsity), 128).numpy()
    assert ((got != 0) == (expected != 0)).all()
    assert abs(got - expected).max() < 1e-9 * abs(expected).max()


def test_coefficients_are_least_squares_on_the_support() -> None:
    atoms, signals = unit_atoms(31, 512), spectra(50, 31)
    codes = batch_omp(signals, atoms, 5)
    for y, support, coefficients in zip(signals, codes.support, codes.coefficients, strict=True):
        exact = torch.linalg.lstsq(atoms[:, support], y).solution
        torch.testing.assert_close(coefficients, exact, rtol=1e-9, atol=1e-12)


def test_recovers_a_sparse_combination() -> None:
    atoms = unit_atoms(64, 96)
    signal = 3.0 * atoms[:, 7] - 2.0 * atoms[:, 50] + 0.5 * atoms[:, 11]
    codes = batch_omp(signal[None], atoms, 3)
    assert codes.support.tolist() == [[7, 50, 11]]
    torch.testing.assert_close(codes.coefficients, torch.tensor([[3.0, -2.0, 0.5]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 7, 255, 256, 257, 1000])
def test_bytes_do_not_depend_on_the_batch(batch: int, dtype: torch.dtype) -> None:
    atoms, signals = unit_atoms(31, 512, dtype), spectra(1001, 31, dtype)
    whole = batch_omp(signals, atoms, 5)
    parts = [batch_omp(part, atoms, 5) for part in signals.split(batch)[:20]]
    n = sum(len(part.support) for part in parts)
    assert torch.equal(torch.cat([part.support for part in parts]), whole.support[:n])
    assert torch.equal(torch.cat([part.coefficients for part in parts]), whole.coefficients[:n])


def test_bytes_do_not_depend_on_order_threads_or_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    atoms, signals = unit_atoms(31, 512, torch.float32), spectra(999, 31, torch.float32)
    whole = batch_omp(signals, atoms, 8)
    flipped = batch_omp(signals.flip(0), atoms, 8)
    assert torch.equal(flipped.coefficients.flip(0), whole.coefficients)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = batch_omp(signals, atoms, 8)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.coefficients, whole.coefficients)
    monkeypatch.setattr(pursuit, "_CHUNK_ELEMENTS_CPU", 512 * 13)
    chunked = batch_omp(signals, atoms, 8)
    assert torch.equal(chunked.coefficients, whole.coefficients)
    assert torch.equal(chunked.support, whole.support)


def test_zero_signals_get_zero_and_leave_others_alone() -> None:
    atoms, signals = unit_atoms(31, 64), spectra(3, 31)
    signals[1] = 0
    codes = batch_omp(signals, atoms, 4)
    assert (codes.coefficients[1] == 0).all()
    assert len(set(codes.support[1].tolist())) == 4
    assert torch.equal(codes.coefficients[2:], batch_omp(signals[2:], atoms, 4).coefficients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicate_and_dependent_atoms_are_safe(dtype: torch.dtype) -> None:
    base = unit_atoms(31, 6, dtype)
    atoms = torch.cat([base, base, -base], dim=1)  # rank 6
    signals = spectra(200, 31, dtype)
    codes = batch_omp(signals, atoms, 18)
    assert torch.isfinite(codes.coefficients).all()
    assert ((codes.coefficients != 0).sum(dim=1) <= 6).all()
    assert all(len(set(row)) == 18 for row in codes.support.tolist())
    best = base @ torch.linalg.lstsq(base, signals.T).solution
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    assert (atoms @ dense(codes, 18).T - best).abs().max() < tolerance


def test_sixteen_bit_signals_are_computed_in_float32() -> None:
    atoms, signals = unit_atoms(31, 64, torch.float32), spectra(20, 31, torch.float32).half()
    codes = batch_omp(signals, atoms, 5)
    exact = batch_omp(signals.float(), atoms, 5)
    assert codes.coefficients.dtype == torch.float16
    assert torch.equal(codes.support, exact.support)
    assert torch.equal(codes.coefficients, exact.coefficients.half())


def test_no_signals_give_no_codes() -> None:
    codes = batch_omp(torch.zeros(0, 31), unit_atoms(31, 64, torch.float32), 5)
    assert codes.support.shape == codes.coefficients.shape == (0, 5)


@pytest.mark.parametrize(
    ("signals", "atoms", "sparsity", "message"),
    [
        (torch.zeros(3), unit_atoms(31, 64), 5, r"\(N, d\), got shape \(3,\)"),
        (torch.zeros(3, 31, dtype=torch.int64), unit_atoms(31, 64), 5, "float type, got torch.int64"),
        (torch.full((3, 31), torch.nan), unit_atoms(31, 64), 5, "finite"),
        (torch.zeros(3, 30), unit_atoms(31, 64), 5, "d = 30"),
        (torch.zeros(3, 31), 1.01 * unit_atoms(31, 64), 5, "norm 1 within 0.001"),
        (torch.zeros(3, 31), torch.nan * unit_atoms(31, 64), 5, "norm 1"),
        (torch.zeros(3, 31), unit_atoms(31, 64), 0, "from 1 to 31.*got 0"),
        (torch.zeros(3, 31), unit_atoms(31, 64), 32, "from 1 to 31.*got 32"),
    ],
)
def test_says_what_is_wrong(signals: Tensor, atoms: Tensor, sparsity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_omp(signals, atoms, sparsity)
