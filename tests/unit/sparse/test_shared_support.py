from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcdeq.sparse import lasso_order, simultaneous_omp

BANDS, ATOMS = 12, 50


def dictionary() -> Tensor:
    atoms = torch.randn(BANDS, ATOMS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return atoms / torch.linalg.vector_norm(atoms, dim=0)


def moments(spectra: Tensor) -> Tensor:
    return spectra.transpose(1, 2) @ spectra


def test_simultaneous_omp_finds_the_atoms_of_a_noisy_block() -> None:
    d, generator = dictionary(), torch.Generator().manual_seed(2)
    truth = [torch.randperm(ATOMS, generator=generator)[:4] for _ in range(5)]
    codes = torch.randn(5, 900, 4, generator=generator, dtype=torch.float64)
    spectra = torch.stack([c @ d[:, t].T for c, t in zip(codes, truth, strict=True)])
    noisy = spectra + 0.1 * torch.randn(spectra.shape, generator=generator, dtype=torch.float64)
    found = simultaneous_omp(moments(noisy), d, 4)
    assert [set(f.tolist()) for f in found] == [set(t.tolist()) for t in truth]


def test_simultaneous_omp_takes_the_atom_that_leaves_least_at_each_step() -> None:
    """Against least squares over all candidates."""
    d = dictionary()
    spectra = torch.rand(2, 40, BANDS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = simultaneous_omp(moments(spectra), d, 5)
    for block, support in zip(spectra, found.tolist(), strict=True):
        for k in range(5):
            left = []
            for atom in range(ATOMS):
                basis = torch.linalg.qr(d[:, [*support[:k], atom]]).Q
                left.append((block - block @ basis @ basis.T).square().sum().item())
            assert support[k] not in support[:k]
            assert left[support[k]] == pytest.approx(min(left), rel=1e-9)


def test_simultaneous_omp_survives_zeros_and_repeated_atoms() -> None:
    d = torch.cat([dictionary()[:, :3]] * 4, dim=1)
    spectra = torch.zeros(2, 10, BANDS, dtype=torch.float64)
    spectra[1] = d[:, 0]
    found = simultaneous_omp(moments(spectra), d, 5)
    assert all(len(set(row)) == 5 for row in found.tolist())


def test_the_lasso_order_is_that_of_the_lars_path() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    d = dictionary()
    signals = torch.rand(6, BANDS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = lasso_order(signals, d, 3, levels=2000, sweeps=300)
    for signal, order in zip(signals, found.tolist(), strict=True):
        *_, path = linear_model.lars_path(d.numpy(), signal.numpy(), method="lasso")
        entry = [int(np.argmax(row != 0)) if (row != 0).any() else path.shape[1] for row in path]
        assert order == list(np.argsort(entry, kind="stable")[:3])
