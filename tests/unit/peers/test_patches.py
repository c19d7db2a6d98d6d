from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcdeq.peers.patches import Aggregate, gather, pixels_of, positions, similar_patches, starts


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("length", "patch", "step"), [(8, 8, 4), (9, 8, 4), (31, 8, 4), (64, 7, 5), (23, 6, 6)]
)
def test_patches_of_a_grid_cover_every_pixel(length: int, patch: int, step: int) -> None:
    first = starts(length, patch, step).tolist()
    assert sorted({p for s in first for p in range(s, s + patch)}) == list(range(length))
    assert len(set(first)) == len(first)


def test_pixels_of_a_patch_are_those_of_the_cut_out_square() -> None:
    scene = torch.arange(3 * 9 * 11).reshape(3, 9, 11)
    matrix = scene.permute(1, 2, 0).reshape(-1, 3)
    corners = positions((9, 11), 4, 3)
    for corner, found in zip(corners.tolist(), gather(matrix, pixels_of(corners, 4, 11)), strict=True):
        y, x = corner
        assert torch.equal(found.T.reshape(3, 4, 4), scene[:, y : y + 4, x : x + 4])


def test_similar_patches_are_those_of_a_literal_double_loop() -> None:
    """Also at the border, where windows are cut off, and with equal distances."""
    picture = (image(17, 22) * 4).round()
    corners = positions((17, 22), 5, 3)
    found = similar_patches(picture, corners, 5, window=4, count=12)
    for reference, nearest in zip(corners.tolist(), found.tolist(), strict=True):
        y, x = reference
        own = picture[y : y + 5, x : x + 5]
        distances = []
        for cy in range(max(0, y - 4), min(12, y + 4) + 1):
            for cx in range(max(0, x - 4), min(17, x + 4) + 1):
                distances.append((float((picture[cy : cy + 5, cx : cx + 5] - own).square().sum()), cy, cx))
        assert nearest == [[cy, cx] for _, cy, cx in sorted(distances)[:12]]


def test_planted_copies_are_found_and_the_patch_itself_comes_first() -> None:
    picture = image(40, 40)
    copies = [(12, 14), (3, 5), (20, 9), (25, 22)]
    for y, x in copies[1:]:
        picture[y : y + 6, x : x + 6] = picture[12:18, 14:20] + 1e-4 * (y + x)
    found = similar_patches(picture, torch.tensor([[12, 14]]), 6, window=15, count=4)[0].tolist()
    assert found[0] == [12, 14]
    assert {tuple(f) for f in found} == set(copies)


def test_a_window_with_few_patches_gives_smaller_groups() -> None:
    found = similar_patches(image(8, 9), positions((8, 9), 6, 2), 6, window=30, count=300)
    assert found.shape == (len(positions((8, 9), 6, 2)), 12, 2)
    assert all(len({tuple(c) for c in group}) == 12 for group in found.tolist())


def test_unchanged_patches_give_the_scene_back_exactly() -> None:
    """Halves and quarters add up without rounding."""
    matrix = (torch.rand(13 * 18, 4, generator=torch.Generator().manual_seed(1)) * 64).round() / 64
    pixels = pixels_of(positions((13, 18), 5, 2), 5, 18)
    result = Aggregate(matrix)
    for some in pixels.split(7):
        result.add(some, gather(matrix, some))
    assert torch.equal(result.mean(), matrix)


def test_aggregation_is_the_mean_of_a_literal_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    corners = torch.tensor([[0, 0], [2, 3], [2, 3], [4, 4], [0, 4], [4, 0], [1, 1]])
    patches = torch.rand(len(corners), 16, 2, generator=generator, dtype=torch.float64)
    matrix = torch.zeros(64, 2, dtype=torch.float64)
    result = Aggregate(matrix)
    result.add(pixels_of(corners, 4, 8), patches)
    total, weight = torch.zeros(8, 8, 2, dtype=torch.float64), torch.zeros(8, 8, 1, dtype=torch.float64)
    for (y, x), patch in zip(corners.tolist(), patches, strict=True):
        total[y : y + 4, x : x + 4] += patch.reshape(4, 4, 2)
        weight[y : y + 4, x : x + 4] += 1
    torch.testing.assert_close(result.mean(), (total / weight).reshape(64, 2), equal_nan=True)
