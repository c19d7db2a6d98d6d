"""Full-band patches: where they lie, which are alike, and how overlapping ones become a scene again.

A scene is held here as a matrix (pixel, band), pixels row by row, so that a patch is some rows of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Numbers held at once while groups of patches are worked on; 32 MiB of float32.
CHUNK = 2**23


def check_input(scene: Tensor, sigma: float, patch: int) -> None:
    """Refuse what cannot be denoised patch by patch.

    Raises
    ------
    ValueError
        If the scene is not a finite float tensor (band, y, x) with at least 2 bands and patch x patch pixels, or sigma is
        not a positive finite number.
    """
    if scene.ndim != 3 or not scene.is_floating_point():
        raise ValueError(
            f"scene must be a float tensor (band, y, x), got {scene.dtype} of shape {tuple(scene.shape)}"
        )
    if scene.shape[0] < 2:
        raise ValueError(
            f"scene has {scene.shape[0]} band; these methods use what bands share and need at least 2"
        )
    if min(scene.shape[1:]) < patch:
        raise ValueError(
            f"scene has {scene.shape[1]} x {scene.shape[2]} pixels, less than one patch of {patch} x {patch}; "
            "give a larger scene or set a smaller patch"
        )
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(
            f"sigma must be a positive number, the noise's standard deviation in the scene's units; got {sigma}"
        )
    if not bool(torch.isfinite(scene).all()):
        raise ValueError(
            "scene has values that are not finite; fill them before denoising, for patches spread them"
        )


def starts(length: int, patch: int, step: int) -> Tensor:
    """First rows (or columns) of patches every `step`, and one more at the end if pixels would be left over."""
    last = length - patch
    regular = list(range(0, last + 1, step))
    return torch.tensor(regular if regular[-1] == last else [*regular, last])


def positions(shape: tuple[int, int], patch: int, step: int) -> Tensor:
    """(patch, 2) row and column of the first pixel of the patches of a grid that covers a scene (y, x)."""
    return torch.cartesian_prod(starts(shape[0], patch, step), starts(shape[1], patch, step))


def pixels_of(corners: Tensor, patch: int, width: int) -> Tensor:
    """(..., patch * patch) rows of the scene's matrix in the patches whose first pixels are `corners` (..., 2)."""
    inside = torch.arange(patch, device=corners.device)
    offsets = (inside[:, None] * width + inside).reshape(-1)
    return (corners[..., :1] * width + corners[..., 1:]) + offsets


def gather(matrix: Tensor, pixels: Tensor) -> Tensor:
    """(..., pixel, band) spectra of the given pixels of a matrix (pixel, band)."""
    return matrix.index_select(0, pixels.reshape(-1)).reshape(*pixels.shape, matrix.shape[1])


def add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows to those of `total`, repeated ones too, in an order that is the same each time."""
    if total.is_cuda:
        # index_add_ adds in any order there, which rounds differently from run to run.
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.index_add_(0, index, rows)


class Aggregate:
    """The sum of overlapping patches, and of how many lie on each pixel."""

    def __init__(self, matrix: Tensor) -> None:
        self.total = torch.zeros_like(matrix)
        self.weight = torch.zeros_like(matrix[:, :1])

    def add(self, pixels: Tensor, patches: Tensor) -> None:
        """Add patches (..., pixel, band) at their pixels (..., pixel)."""
        flat = pixels.reshape(-1)
        add_rows(self.total, flat, patches.reshape(len(flat), -1))
        add_rows(self.weight, flat, torch.ones_like(self.weight[:1]).expand(len(flat), 1))

    def mean(self) -> Tensor:
        """(pixel, band) mean of the patches on each pixel."""
        return self.total / self.weight


def similar_patches(image: Tensor, corners: Tensor, patch: int, window: int, count: int) -> Tensor:
    """Find, for each reference patch, the patches nearest to it in a window around it.

    Parameters
    ----------
    image
        (y, x), in which patches are compared by the sum of squared differences.
    corners
        (reference, 2), first pixels of the reference patches.
    patch
        Edge of a patch in pixels.
    window
        Candidates start at most so many pixels away, in rows and in columns.
    count
        Patches to find; fewer if some window holds fewer.

    Returns
    -------
    Tensor
        (reference, count, 2), first pixels of the nearest patches, nearest first; of equals the first by row, then column.
    """
    height, width = (n - patch + 1 for n in image.shape)
    reach_y, reach_x = min(window, height - 1), min(window, width - 1)
    by = torch.arange(-reach_y, reach_y + 1, device=image.device)
    bx = torch.arange(-reach_x, reach_x + 1, device=image.device)
    offsets = torch.cartesian_prod(by, bx)
    flat = image.reshape(-1, 1)
    # What the window of a patch in a corner of the scene holds.
    count = min(count, (reach_y + 1) * (reach_x + 1))
    limit = torch.tensor([height - 1, width - 1], device=image.device)
    found = []
    for some in corners.split(max(1, CHUNK // (len(offsets) * patch * patch))):
        candidates = some[:, None] + offsets
        outside = ((candidates < 0) | (candidates > limit)).any(-1)
        values = gather(flat, pixels_of(candidates.clamp(min=0).minimum(limit), patch, image.shape[1]))[
            ..., 0
        ]
        own = gather(flat, pixels_of(some, patch, image.shape[1]))[:, None, :, 0]
        distance = (values - own).square_().sum(-1).masked_fill_(outside, math.inf)
        nearest = distance.sort(dim=1, stable=True).indices[:, :count]
        found.append(candidates.gather(1, nearest[..., None].expand(-1, -1, 2)))
    return torch.cat(found)
