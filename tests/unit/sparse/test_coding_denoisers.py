"""Denoising by sparse coding: less noise, in the units and types of the blocks, the same bytes in any batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hpcdeq.sparse import (
    batch_omp,
    denoise_by_fast_tv,
    denoise_by_lasso,
    denoise_by_omp,
    denoise_by_sunsal_tv,
)

BANDS, ATOMS, SIGMA = 16, 40, 50 / 255
DENOISERS = [denoise_by_omp, denoise_by_lasso, denoise_by_fast_tv, denoise_by_sunsal_tv]
Denoiser = Callable[[Tensor, Tensor, float], Tensor]


def dictionary() -> Tensor:
    atoms = torch.rand(BANDS, ATOMS, generator=torch.Generator().manual_seed(1)).cumsum(0)
    return atoms / atoms.norm(dim=0)


def clean_and_noisy(n: int) -> tuple[Tensor, Tensor]:
    """Each half of a block is one atom."""
    generator = torch.Generator().manual_seed(2)
    chosen = dictionary().T[torch.randint(ATOMS, (n, 2), generator=generator)]
    clean = 2 * chosen.repeat_interleave(6, dim=1).transpose(1, 2)[:, :, None].expand(-1, -1, 10, -1)
    return clean, clean + SIGMA * torch.randn(clean.shape, generator=generator)


@pytest.mark.parametrize("denoise", DENOISERS)
def test_takes_noise_away(denoise: Denoiser) -> None:
    clean, noisy = clean_and_noisy(2)
    error = (denoise(noisy, dictionary(), SIGMA) - clean).square().mean()
    assert error < (noisy - clean).square().mean() / 2


@pytest.mark.parametrize("denoise", DENOISERS)
def test_scales_with_the_units(denoise: Denoiser) -> None:
    """Constants are in sigma: blocks in other units give the same in those units."""
    _, noisy = clean_and_noisy(1)
    noisy, d = noisy.double(), dictionary().double()
    d /= d.norm(dim=0)
    one, large = denoise(noisy, d, SIGMA), denoise(1000 * noisy, d, 1000 * SIGMA)
    torch.testing.assert_close(large / 1000, one, rtol=0, atol=1e-9)


@pytest.mark.parametrize("denoise", DENOISERS)
def test_bytes_do_not_depend_on_the_batch(denoise: Denoiser) -> None:
    _, noisy = clean_and_noisy(3)
    whole = denoise(noisy, dictionary(), SIGMA)
    assert whole.dtype == noisy.dtype
    for i in range(3):
        assert torch.equal(denoise(noisy[i : i + 1], dictionary(), SIGMA)[0], whole[i])
    assert denoise(noisy[:0], dictionary(), SIGMA).shape == (0, BANDS, 10, 12)


@pytest.mark.parametrize("denoise", DENOISERS)
@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_sigma_is_named(denoise: Denoiser, sigma: float) -> None:
    _, noisy = clean_and_noisy(1)
    with pytest.raises(ValueError, match="sigma must be the standard deviation of the noise"):
        denoise(noisy, dictionary(), sigma)


@pytest.mark.parametrize("denoise", DENOISERS)
def test_bad_blocks_are_named(denoise: Denoiser) -> None:
    with pytest.raises(ValueError, match=r"blocks must be \(block, band, y, x\)"):
        denoise(torch.zeros(BANDS, 3, 3), dictionary(), SIGMA)


def test_omp_stops_at_the_noise() -> None:
    """As many atoms as bring the residual below what it may be, and not one fewer."""
    atoms = torch.randn(BANDS, ATOMS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    atoms /= atoms.norm(dim=0)
    signals = torch.rand(50, BANDS, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    limit = 0.5
    codes = batch_omp(signals, atoms, BANDS, residual=limit)
    full = batch_omp(signals, atoms, BANDS)
    counts = set()
    for y, support, values, order in zip(
        signals, codes.support, codes.coefficients, full.support, strict=True
    ):
        k = int((values != 0).sum())
        counts.add(k)
        assert torch.equal(support[:k], order[:k])
        assert not bool(values[k:].any())

        def left(k: int, y: Tensor = y, order: Tensor = order) -> float:
            return float((y - atoms[:, order[:k]] @ torch.linalg.pinv(atoms[:, order[:k]]) @ y).norm())

        assert left(k) <= limit
        assert left(k - 1) > limit
        torch.testing.assert_close(values[:k], torch.linalg.lstsq(atoms[:, order[:k]], y).solution)
    assert len(counts) > 2


def test_omp_finds_the_support_where_theory_says_that_it_must() -> None:
    """Tropp's exact recovery condition: max over other atoms of the l1 norm of pinv(A_S) a is below 1."""
    generator = torch.Generator().manual_seed(5)
    atoms = torch.randn(64, 80, dtype=torch.float64, generator=generator)
    atoms /= atoms.norm(dim=0)
    met = 0
    for _ in range(40):
        support = torch.randperm(80, generator=generator)[:3]
        others = torch.ones(80, dtype=torch.bool)
        others[support] = False
        if float((torch.linalg.pinv(atoms[:, support]) @ atoms[:, others]).abs().sum(0).max()) >= 1:
            continue
        met += 1
        signal = atoms[:, support] @ torch.randn(3, dtype=torch.float64, generator=generator)
        codes = batch_omp(signal[None], atoms, 3)
        assert set(codes.support[0].tolist()) == set(support.tolist())
    assert met >= 10


@pytest.mark.parametrize("residual", [-1.0, float("nan")])
def test_a_bad_residual_is_named(residual: float) -> None:
    with pytest.raises(ValueError, match="residual must be a norm, at least 0"):
        batch_omp(torch.rand(2, 4), torch.eye(4), 2, residual=residual)
