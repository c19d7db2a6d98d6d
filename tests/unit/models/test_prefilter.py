"""The Wiener filter that may stand before a map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpcdeq.models import CnnSettings, ModelSettings, SparseDenoiser, SupportSettings
from hpcdeq.models.prefilter import _cosine_transform, wiener
from hpcdeq.models.spectra import to_blocks, to_spectra
from hpcdeq.solvers import Anderson

BANDS = 9


def scene(height: int = 20, width: int = 20, count: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Two smooth images, each with a spectrum of its own."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phase = 3 * torch.rand(count, 2, 1, 1, generator=generator)
    images = 0.5 + 0.25 * torch.sin(phase + torch.stack([3 * y + x, x - 2 * y]))
    spectra = torch.rand(count, BANDS, 2, generator=generator) / 2
    return torch.einsum("ncyx,nbc->nbyx", images, spectra).to(dtype)


def noisy(clean: Tensor, sigma: float = 0.1) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return clean + sigma * noise.to(clean.dtype)


def error(found: Tensor, clean: Tensor) -> float:
    return (found - clean).square().mean().sqrt().item()


def test_most_of_the_noise_of_a_smooth_scene_goes() -> None:
    clean = scene()
    assert error(wiener(noisy(clean)), clean) < 0.1 / 3


def test_a_scene_without_noise_stays() -> None:
    clean = scene()
    # Its own detail is measured as a little noise.
    torch.testing.assert_close(wiener(clean), clean, rtol=0, atol=5e-4)
    flat = torch.full((2, BANDS, 20, 20), 0.3)
    torch.testing.assert_close(wiener(flat), flat)


def test_blocks_without_data_are_0() -> None:
    assert torch.equal(wiener(torch.zeros(2, BANDS, 20, 20)), torch.zeros(2, BANDS, 20, 20))


def test_the_mean_spectrum_stays() -> None:
    found = noisy(scene())
    torch.testing.assert_close(wiener(found).mean((2, 3)), found.mean((2, 3)))


def test_no_block_depends_on_its_batch_mates() -> None:
    blocks = noisy(scene(dtype=torch.float32))
    alone = torch.cat([wiener(one[None]) for one in blocks])
    assert torch.equal(wiener(blocks), alone)


def test_a_block_that_is_not_finite_harms_no_other() -> None:
    blocks = noisy(scene(dtype=torch.float32))
    broken = blocks.clone()
    broken[1, 3, 4, 5] = torch.nan
    broken[2, 3, 4, 5] = torch.inf
    found = wiener(broken)
    assert torch.equal(found[[0, 3]], wiener(blocks)[[0, 3]])
    assert found[1:3].isnan().all()


@pytest.mark.parametrize("turn", [lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)])
def test_flips_and_turns_of_a_block_are_those_of_its_estimate(turn) -> None:
    blocks = noisy(scene(14, 20))
    torch.testing.assert_close(wiener(turn(blocks)), turn(wiener(blocks)))


def test_bands_in_another_order_give_the_same_bands() -> None:
    blocks = noisy(scene())
    order = torch.randperm(BANDS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(wiener(blocks[:, order]), wiener(blocks)[:, order])


@given(height=st.integers(2, 25), width=st.integers(2, 25))
def test_the_transform_is_the_orthonormal_cosine_transform(height: int, width: int) -> None:
    images = torch.rand(2, 3, height, width, dtype=torch.float64)
    found = _cosine_transform(images)
    expected = torch.from_numpy(scipy.fft.dctn(images.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(_cosine_transform(found, inverse=True), images)


@pytest.mark.parametrize("which", ["fast", "full"])
def test_the_filtered_block_stands_for_the_noisy_one_in_the_map(which: str) -> None:
    plain = ModelSettings(
        map=which,
        block=20,
        b=2.0,
        prior=CnnSettings(layers=3, filters=8),
        support=SupportSettings(size=4),
        solver=Anderson(iterations=30, tolerance=1e-6),
    )
    atoms = torch.randn(BANDS, 40, generator=torch.Generator().manual_seed(3))
    models = []
    for settings in (plain, replace(plain, prefilter="wiener")):
        torch.manual_seed(4)
        models.append(SparseDenoiser(settings, atoms / torch.linalg.vector_norm(atoms, dim=0)).eval())
    blocks = noisy(scene(dtype=torch.float32))
    with torch.no_grad():
        assert torch.equal(models[1](blocks).estimate, models[0](wiener(blocks)).estimate)
        assert torch.equal(models[1].prior_alone(blocks), models[0].prior_alone(wiener(blocks)))
        assert not torch.equal(models[1](blocks).estimate, models[0](blocks).estimate)


def test_a_prior_is_told_the_level_before_the_filter() -> None:
    settings = ModelSettings(
        map="prior", block=20, prior=CnnSettings(layers=2, filters=4, noise_map=True), prefilter="wiener"
    )
    atoms = torch.eye(BANDS)
    model = SparseDenoiser(settings, atoms).eval()
    blocks = noisy(scene(dtype=torch.float32))
    with torch.no_grad():
        prior = model.prior.fix(blocks, torch.float32)
        expected = to_blocks(prior(to_spectra(wiener(blocks))), 20, 20)
        assert torch.equal(model.prior_alone(blocks), expected)
