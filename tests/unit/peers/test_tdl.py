from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hpcdeq.peers import TdlSettings, tdl
from hpcdeq.peers.patches import pixels_of, positions
from hpcdeq.peers.tdl import _smoothed, cluster_patches, estimated_rank, tucker


def group_of_rank(
    rank: int, patch_rank: int, *, patches: int = 60, pixels: int = 25, bands: int = 12
) -> Tensor:
    """(patch, pixel, band) with exactly these ranks."""
    g = torch.Generator().manual_seed(rank + 10 * patch_rank)
    core = torch.randn(patch_rank, pixels, rank, generator=g, dtype=torch.float64)
    left = torch.randn(patches, patch_rank, generator=g, dtype=torch.float64)
    right = torch.randn(rank, bands, generator=g, dtype=torch.float64)
    return torch.einsum("np,psr,rb->nsb", left, core, right)


def fields(size: int, bands: int = 12, seed: int = 0) -> Tensor:
    """(band, y, x) in [0, 1]: fields with four smooth spectra, sharp borders and a gentle shade."""
    g = torch.Generator().manual_seed(seed)
    at = torch.linspace(0, math.pi, bands)
    spectra = torch.stack([0.5 + 0.4 * torch.cos(at * k / 2 + k) for k in range(4)])
    coarse = torch.randint(0, 4, (size // 12 + 1, size // 12 + 1), generator=g)
    labels = coarse.repeat_interleave(12, 0).repeat_interleave(12, 1)[:size, :size]
    shade = 0.8 + 0.2 * torch.sin(torch.arange(size) / 9.0)
    return spectra[labels].permute(2, 0, 1) * shade


def noisy(scene: Tensor, sigma: float, seed: int = 1) -> Tensor:
    return scene + sigma * torch.randn(
        scene.shape, generator=torch.Generator().manual_seed(seed), dtype=scene.dtype
    )


def psnr(scene: Tensor, estimate: Tensor) -> float:
    return -10 * math.log10(float((scene - estimate).square().mean()))


@pytest.mark.parametrize(("rank", "patch_rank"), [(1, 1), (2, 5), (4, 3), (12, 60)])
def test_tucker_gives_a_group_of_its_rank_back(rank: int, patch_rank: int) -> None:
    group = group_of_rank(rank, patch_rank)
    found = tucker(group, (rank, patch_rank), iterations=50, tolerance=1e-4)
    torch.testing.assert_close(found.tensor(), group, rtol=0, atol=1e-9 * float(group.abs().max()))
    assert found.core.shape == (patch_rank, 25, rank)


@pytest.mark.parametrize("patches", [7, 60, 500])
def test_tucker_factors_are_orthonormal_and_the_core_is_the_projection(patches: int) -> None:
    """Groups with more patches than values take another way; 500 > 25 * 4."""
    group = torch.randn(patches, 25, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = tucker(group, (4, 6), iterations=50, tolerance=1e-4)
    for factor in (found.patches, found.bands):
        one = torch.eye(factor.shape[1], dtype=torch.float64)
        torch.testing.assert_close(factor.T @ factor, one, rtol=0, atol=1e-12)
    core = torch.einsum("nsb,np,br->psr", group, found.patches, found.bands)
    torch.testing.assert_close(found.core, core, rtol=0, atol=1e-11)


def test_tucker_leaves_no_more_than_the_truncated_higher_order_svd() -> None:
    group = noisy(group_of_rank(3, 4), 2.0)
    found = tucker(group, (2, 3), iterations=50, tolerance=0.0)
    bands = torch.linalg.svd(group.reshape(-1, 12), full_matrices=False).Vh[:2]
    patches = torch.linalg.svd(group.reshape(60, -1), full_matrices=False).U[:, :3]
    truncated = torch.tensordot(patches @ patches.T, group @ bands.T @ bands, dims=1)
    left = (group - found.tensor()).square().sum()
    assert left < (group - truncated).square().sum()
    # At the optimum each factor spans the leading directions of the group projected by the other.
    projected = torch.tensordot(found.patches.T, group, dims=1).reshape(-1, 12)
    best = torch.linalg.svd(projected, full_matrices=False).Vh[:2].T
    torch.testing.assert_close(best @ best.T, found.bands @ found.bands.T, rtol=0, atol=1e-6)


def test_tucker_of_zeros_is_zero() -> None:
    assert (
        not tucker(torch.zeros(6, 9, 4, dtype=torch.float64), (2, 3), iterations=5, tolerance=0.0)
        .tensor()
        .any()
    )


@pytest.mark.parametrize("criterion", ["aic", "mdl"])
@pytest.mark.parametrize(("samples", "variables"), [(2000, 20), (20, 2000)])
def test_the_rank_of_exact_data_is_found(criterion: str, samples: int, variables: int) -> None:
    g = torch.Generator().manual_seed(3)
    for rank in (1, 4, 9):
        data = torch.randn(samples, rank, generator=g) @ torch.randn(rank, variables, generator=g)
        assert estimated_rank(data, criterion) == rank  # type: ignore[arg-type]


@pytest.mark.parametrize(("rank", "patch_rank"), [(1, 2), (3, 5), (6, 8)])
def test_both_ranks_of_a_noisy_group_are_found(rank: int, patch_rank: int) -> None:
    """Description length is right each time; Akaike's criterion, known for it, takes at most a few too many."""
    group = noisy(group_of_rank(rank, patch_rank, patches=100, pixels=64), 0.5)
    assert estimated_rank(group.reshape(-1, 12), "mdl") == rank
    rows = group.reshape(100, -1).T
    assert estimated_rank(rows, "mdl") == patch_rank
    assert patch_rank <= estimated_rank(rows, "aic") <= patch_rank + 3


def test_the_rank_is_the_best_of_a_literal_loop_over_all() -> None:
    data = noisy(group_of_rank(4, 9).reshape(-1, 12), 3.0)
    centred = data - data.mean(0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred / len(data)).flip(0)
    for criterion in ("aic", "mdl"):
        scores = []
        for q in range(1, 12):
            tail = spectrum[q:]
            likelihood = len(data) * (len(tail) * math.log(tail.mean()) - float(tail.log().sum()))
            free = 2 * 12 * q - q * q + 1
            scores.append(likelihood + (free if criterion == "aic" else free / 2 * math.log(len(data))))
        assert estimated_rank(data, criterion) == scores.index(min(scores)) + 1  # type: ignore[arg-type]


def test_clusters_separate_patches_that_differ() -> None:
    scene = fields(48)
    scene[:, :, 24:] += 5
    corners = positions((48, 48), 8, 8)
    matrix = scene.permute(1, 2, 0).reshape(-1, 12)
    labels = cluster_patches(matrix, pixels_of(corners, 8, 48), 2, 50)
    assert torch.equal(labels == labels[-1], corners[:, 1] >= 24)
    assert sorted(set(labels.tolist())) == [0, 1]


def test_k_means_ends_where_every_patch_is_with_its_nearest_mean() -> None:
    matrix = torch.rand(30 * 30, 3, generator=torch.Generator().manual_seed(4))
    pixels = pixels_of(positions((30, 30), 5, 2), 5, 30)
    labels = cluster_patches(matrix, pixels, 6, 100)
    features = matrix[pixels].flatten(1).double()
    means = torch.stack([features[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    assert torch.equal(torch.cdist(features, means).argmin(1), labels)


def test_a_scene_of_one_colour_is_one_cluster() -> None:
    labels = cluster_patches(torch.ones(400, 3), pixels_of(positions((20, 20), 5, 3), 5, 20), 4, 10)
    assert not labels.any()


@pytest.mark.parametrize("sigma", [1e-4, 30 / 255, 50 / 255])
def test_smoothing_keeps_shape_and_constants(sigma: float) -> None:
    out = _smoothed(torch.full((3, 10, 13), 0.7), sigma, 8)
    torch.testing.assert_close(out, torch.full((3, 10, 13), 0.7))
    assert (sigma < 0.01) == torch.equal(_smoothed(fields(20), sigma, 8), fields(20))


def test_a_noise_free_scene_of_low_rank_comes_back() -> None:
    scene = fields(48)
    torch.testing.assert_close(tdl(scene, 1e-6), scene, rtol=0, atol=2e-4)


def test_the_whole_is_that_of_a_literal_loop_over_clusters() -> None:
    """Alternating singular value decompositions of unfoldings with explicit patches; 29 x 33 pixels leave some at the edges."""
    scene = noisy(fields(33)[:, :29], 30 / 255)
    corners = positions((29, 33), 8, 4)
    smooth = _smoothed(scene, 30 / 255, 8).permute(1, 2, 0).reshape(-1, 12)
    labels = cluster_patches(smooth, pixels_of(corners, 8, 33), math.ceil(len(corners) / 20), 100).tolist()
    total, weight = torch.zeros(12, 29, 33, dtype=torch.float64), torch.zeros(29, 33)
    for label in sorted(set(labels)):
        members = [c for c, own in zip(corners.tolist(), labels, strict=True) if own == label]
        group = torch.stack(
            [scene[:, y : y + 8, x : x + 8] for y, x in members]
        ).double()  # patch, band, y, x
        rank = estimated_rank(group.permute(0, 2, 3, 1).reshape(-1, 12), "mdl")
        patch_rank = estimated_rank(group.reshape(len(members), -1).T, "aic") if len(members) > 1 else 1
        bands, patches = torch.eye(12, dtype=torch.float64), torch.eye(len(members), dtype=torch.float64)
        for _ in range(80):
            seen = torch.einsum("nbyx,nm,mk->kbyx", group, patches, patches.T)
            u = torch.linalg.svd(seen.transpose(0, 1).reshape(12, -1), full_matrices=False).U[:, :rank]
            bands = u @ u.T
            seen = torch.einsum("nbyx,bc->ncyx", group, bands)
            u = torch.linalg.svd(seen.reshape(len(members), -1), full_matrices=False).U[:, :patch_rank]
            patches = u @ u.T
        for (y, x), patch in zip(
            members, torch.einsum("nbyx,nm,bc->mcyx", group, patches, bands), strict=True
        ):
            total[:, y : y + 8, x : x + 8] += patch
            weight[y : y + 8, x : x + 8] += 1
    found = tdl(scene, 30 / 255, TdlSettings(patch=8, patches_per_cluster=20, tolerance=0.0, iterations=80))
    torch.testing.assert_close(found.double(), total / weight, rtol=0, atol=1e-5)


def test_noise_at_sigma_50_falls_by_many_decibels() -> None:
    """15.1 dB are gained here (from 14.1 to 29.2)."""
    scene = fields(72)
    given = noisy(scene, 50 / 255)
    assert psnr(scene, tdl(given, 50 / 255)) > psnr(scene, given) + 12


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 8, 21), (5, 19, 33)])
def test_any_shape_comes_back_as_it_was(shape: tuple[int, int, int]) -> None:
    given = noisy(torch.full(shape, 0.5, dtype=torch.float64), 0.1)
    out = tdl(given, 0.1)
    assert out.shape == given.shape
    assert out.dtype == torch.float64
    assert bool(torch.isfinite(out).all())
    assert psnr(torch.full(shape, 0.5), out.float()) > psnr(torch.full(shape, 0.5), given.float())


def test_the_same_scene_gives_the_same_bytes_and_stays_as_it_was() -> None:
    given = noisy(fields(40), 0.1)
    before = given.clone()
    assert torch.equal(tdl(given, 0.1), tdl(given, 0.1))
    assert torch.equal(given, before)


@pytest.mark.parametrize(
    ("scene", "sigma", "told"),
    [
        (torch.rand(1, 20, 20), 0.1, "1 band"),
        (torch.rand(20, 20), 0.1, r"\(band, y, x\)"),
        (torch.ones(3, 20, 20, dtype=torch.int64), 0.1, "float tensor"),
        (torch.rand(3, 20, 4), 0.1, "one patch"),
        (torch.rand(3, 7, 20) * 0.1, 0.1, "one patch of 8 x 8"),
        (torch.rand(3, 20, 20), 0.0, "sigma must be a positive number"),
        (torch.rand(3, 20, 20), math.nan, "sigma must be a positive number"),
        (torch.full((3, 20, 20), math.nan), 0.1, "not finite"),
    ],
)
def test_what_cannot_be_denoised_is_refused(scene: Tensor, sigma: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tdl(scene, sigma)


@pytest.mark.parametrize(
    "wrong", [{"patch": 1}, {"patches_per_cluster": 0}, {"sweeps": 0}, {"tolerance": -1.0}]
)
def test_wrong_tdl_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TdlSettings(**wrong)  # type: ignore[arg-type]
