"""TDL: groups of similar full-band patches, each approximated by a Tucker decomposition of estimated ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hpcdeq.peers.patches import CHUNK, Aggregate, add_rows, check_input, gather, pixels_of, positions

_FLOOR = 1e-12  # of the largest eigenvalue; smaller ones are rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class TdlSettings:
    """Settings of TDL; the defaults are those of the authors' code (``TensorDL.m``, ``TuckerALS.m``)."""

    patch: int | None = None
    """Edge of a patch in pixels, overlapping by half. By default 8, or 5 where the mean standard deviation over windows of
    32 x 32 pixels says that the clean scene is rich in detail (its variance is above 0.01)."""
    patches_per_cluster: int = 100
    """How many patches a cluster has on average."""
    sweeps: int = 100
    """Most sweeps of k-means. The authors have no limit; labels seldom change after some tens."""
    iterations: int = 50
    """Most sweeps of the alternating least squares."""
    tolerance: float = 1e-4
    """They stop when the explained share of the norm changes by less."""

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch < 2:
            raise ValueError(f"patch must be at least 2 pixels, got {self.patch}")
        for name in ("patches_per_cluster", "sweeps", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")


_DEFAULTS = TdlSettings()


def tdl(scene: Tensor, sigma: float, settings: TdlSettings = _DEFAULTS) -> Tensor:
    """Denoise a scene by decomposable non-local tensor dictionaries (TDL).

    Full-band patches on a grid are clustered by k-means on a lightly smoothed copy. The noisy patches of a cluster form a
    tensor (row, column, band, patch), which is replaced by its best Tucker approximation. Rows and columns keep their full
    rank; that of the bands is estimated by minimum description length, that of the patches by Akaike's criterion.
    Overlapping patches are averaged. Sigma sets the smoothing and the size of the patches; the ranks follow from the data.

    Parameters
    ----------
    scene
        (band, y, x) float tensor, nominally in [0, 1], with independent Gaussian noise of the same strength in all bands.
    sigma
        Standard deviation of that noise, in the scene's units.
    settings
        What the authors chose, if not given.

    Returns
    -------
    Tensor
        The denoised scene, of the same shape, type and device; the same bytes each time. It is not clamped.

    Raises
    ------
    ValueError
        If the scene or sigma cannot be used.

    Notes
    -----
    Written after the paper and the authors' MATLAB code, as other authors' comparisons carry it along. It differs in this:
    patches are added at the right and lower edge, where the code leaves pixels out; k-means++ draws from a generator of
    its own with a fixed seed; the smoothing repeats pixels at the border instead of zeros; alternating least squares starts
    from the truncated higher-order SVD, not from random factors; eigenvalues below 1e-12 of the largest count as equal,
    so that scenes without noise have a rank. How the authors' routine for leading vectors (``my_nvecs``) reduces a rank
    could not be checked; here a rank is at most the product of the others. The results were not compared with MATLAB's.

    References
    ----------
    Peng, Meng, Xu, Gao, Yang, Zhang: *Decomposable nonlocal tensor dictionary learning for multispectral image denoising*,
    CVPR 2014, doi:10.1109/CVPR.2014.377.
    """
    check_input(scene, sigma, settings.patch or 5)
    patch = settings.patch or _patch_size(scene, sigma)
    check_input(scene, sigma, patch)
    bands, height, width = scene.shape
    noisy = scene.permute(1, 2, 0).reshape(-1, bands).float()
    smooth = _smoothed(scene.float(), sigma, patch).permute(1, 2, 0).reshape(-1, bands)
    corners = positions((height, width), patch, patch - patch // 2).to(scene.device)
    pixels = pixels_of(corners, patch, width)
    clusters = math.ceil(len(pixels) / settings.patches_per_cluster)
    labels = cluster_patches(smooth, pixels, clusters, settings.sweeps)
    result = Aggregate(noisy)
    for label in range(int(labels.max()) + 1):
        members = pixels[labels == label]
        group = gather(noisy, members).double()
        ranks = (
            estimated_rank(group.reshape(-1, bands), "mdl"),
            estimated_rank(group.reshape(len(members), -1).T, "aic"),
        )
        found = tucker(group, ranks, iterations=settings.iterations, tolerance=settings.tolerance)
        result.add(members, found.tensor().float())
    return result.mean().reshape(height, width, bands).permute(2, 0, 1).to(scene.dtype).contiguous()


class Tucker(NamedTuple):
    """A tensor (patch, pixel, band) as a core times an orthonormal factor for its patches and one for its bands.

    The pixels' factors are square and orthonormal, so that they change nothing and are left out.
    """

    core: Tensor
    """(patch rank, pixel, band rank)."""
    patches: Tensor
    """(patch, patch rank), orthonormal columns."""
    bands: Tensor
    """(band, band rank), orthonormal columns."""

    def tensor(self) -> Tensor:
        """(patch, pixel, band) tensor that is described."""
        whole: Tensor = torch.tensordot(self.patches, self.core @ self.bands.T, dims=1)
        return whole


def tucker(group: Tensor, ranks: tuple[int, int], *, iterations: int, tolerance: float) -> Tucker:
    """Approximate a group in least squares by a Tucker decomposition (higher-order orthogonal iteration).

    Parameters
    ----------
    group
        (patch, pixel, band).
    ranks
        Of the bands and of the patches; each is cut down to what the other one allows.
    iterations, tolerance
        Most sweeps; they stop when the explained share of the norm changes by less than the tolerance.

    References
    ----------
    De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000, doi:10.1137/S0895479898346995.
    """
    count, pixels, bands = group.shape
    rank = min(ranks[0], bands, pixels * count)
    patch_rank = min(ranks[1], count, pixels * rank)
    rank = min(rank, pixels * patch_rank)
    norm = torch.linalg.vector_norm(group)
    patches = _leading(group.reshape(count, -1), patch_rank)
    fit = 0.0
    for _ in range(iterations):
        inner = torch.tensordot(patches.T, group, dims=1)
        spectra = _leading(inner.reshape(-1, bands).T, rank)
        patches = _leading((group @ spectra).reshape(count, -1), patch_rank)
        core = torch.tensordot(patches.T, group @ spectra, dims=1)
        before, fit = fit, float(torch.linalg.vector_norm(core) / norm.clamp_min(1e-300))
        # The share of the norm that is left over, as the authors measure it.
        if abs(math.sqrt(max(0.0, 1 - fit**2)) - math.sqrt(max(0.0, 1 - before**2))) < tolerance:
            break
    return Tucker(core, patches, spectra)


def estimated_rank(samples: Tensor, criterion: Literal["aic", "mdl"]) -> int:
    """Estimate the dimension of the subspace in which noisy samples lie, from the eigenvalues of their covariance.

    Of the models "q directions and white noise", q from 1 to d - 1, the one is taken that Akaike's information criterion
    or the minimum description length prefers. With fewer samples than variables the two change places, as in the authors'
    code.

    Parameters
    ----------
    samples
        (sample, variable); their mean is taken off.
    criterion
        ``"aic"`` or ``"mdl"``.

    References
    ----------
    Wax, Kailath: *Detection of signals by information theoretic criteria*, IEEE Trans. ASSP 33, 1985,
    doi:10.1109/TASSP.1985.1164557.
    """
    centred = samples.double() - samples.double().mean(0)
    wide = centred.shape[0] < centred.shape[1]
    many, few = sorted(centred.shape, reverse=True)
    if few < 2:
        return 1
    covariance = (centred @ centred.T if wide else centred.T @ centred) / centred.shape[0]
    spectrum = torch.linalg.eigvalsh(covariance).cpu()
    spectrum = spectrum.clamp_min(max(_FLOOR * float(spectrum[-1]), 1e-300))
    q = torch.arange(1, few)
    rest = few - q
    mean = spectrum.cumsum(0)[rest - 1] / rest
    likelihood = many * (rest * mean.log() - spectrum.log().cumsum(0)[rest - 1])
    free = 2 * few * q - q**2 + 1
    penalty = free if criterion == "aic" else 0.5 * math.log(many) * free
    # Authors' scores, where Akaike's is twice this one.
    return int((likelihood + penalty).argmin()) + 1


def cluster_patches(matrix: Tensor, pixels: Tensor, clusters: int, sweeps: int) -> Tensor:
    """Cluster patches by k-means with careful seeding, from a fixed seed.

    Parameters
    ----------
    matrix
        (pixel, band), the scene.
    pixels
        (patch, pixel), which of them are in a patch.
    clusters
        Most clusters; those that become empty are dropped.
    sweeps
        Most sweeps over all patches; they stop when no label changes.

    Returns
    -------
    Tensor
        (patch,) int64, 0, 1, ... without gaps.

    References
    ----------
    Arthur, Vassilvitskii: *k-means++: the advantages of careful seeding*, SODA 2007.
    """
    features = pixels.shape[1] * matrix.shape[1]
    chunks = pixels.split(max(1, CHUNK // (features + clusters)))
    draws = torch.rand(clusters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = [int(draws[0] * len(pixels))]
    near = torch.full((len(pixels),), math.inf, dtype=torch.float64)
    for draw in draws[1:]:
        seed = gather(matrix, pixels[chosen[-1]])
        distance = [(gather(matrix, chunk) - seed).square_().sum((1, 2)) for chunk in chunks]
        near = near.minimum(torch.cat(distance).cpu().double())
        reached = near.cumsum(0)
        chosen.append(int(torch.searchsorted(reached, draw * reached[-1])))
    centres = gather(matrix, pixels[chosen]).flatten(1)
    labels = torch.full((len(pixels),), -1, device=pixels.device)
    for _ in range(sweeps):
        half = centres.square().sum(1) / 2
        scores = [gather(matrix, chunk).flatten(1) @ centres.T - half for chunk in chunks]
        before, labels = labels, torch.cat([score.argmax(1) for score in scores])
        labels = labels.unique(return_inverse=True)[1]
        if torch.equal(before, labels):
            break
        sizes = labels.bincount()
        centres = torch.zeros(len(sizes), features, dtype=matrix.dtype, device=matrix.device)
        for chunk, where in zip(chunks, labels.split(len(chunks[0])), strict=True):
            add_rows(centres, where, gather(matrix, chunk).flatten(1))
        centres /= sizes[:, None]
    return labels


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors, by the eigenvectors of the smaller Gram matrix."""
    if matrix.shape[0] <= matrix.shape[1]:
        left: Tensor = torch.linalg.eigh(matrix @ matrix.T).eigenvectors
        return left[:, -rank:].flip(1)
    right = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:].flip(1)
    # QR keeps the span and makes the columns orthonormal also where singular values are next to nothing.
    basis: Tensor = torch.linalg.qr(matrix @ right).Q
    return basis


def _patch_size(scene: Tensor, sigma: float) -> int:
    """The authors' choice: large patches unless the scene is rich in detail."""
    edges = [min(32, n) for n in scene.shape[1:]]
    windows = scene.float().unfold(1, edges[0], 16).unfold(2, edges[1], 16)
    spread = windows.std(dim=(3, 4)).mean()
    return 8 if float(spread) ** 2 - sigma**2 < 0.01 else 5


def _smoothed(scene: Tensor, sigma: float, patch: int) -> Tensor:
    """Smooth every band by a small Gaussian, wider where there is more noise."""
    wanted = sigma**2 / (4 * math.pi * 0.05**2)
    edge = min(math.ceil(6 * wanted), round(patch / 2))
    at = torch.arange(edge, dtype=torch.float32, device=scene.device) - (edge - 1) / 2
    taps = torch.exp(-(at**2) / (2 * (edge / 6) ** 2))
    weights = (taps / taps.sum()).tolist()
    before, after = (edge - 1) // 2, edge // 2
    wide = pad(scene[:, None], (before, after, before, after), mode="replicate")[:, 0]
    height, width = scene.shape[1:]
    rows = sum(
        (w * wide[:, i : i + height] for i, w in enumerate(weights)), torch.zeros_like(scene[:, :1, :1])
    )
    return sum(
        (w * rows[:, :, i : i + width] for i, w in enumerate(weights)), torch.zeros_like(scene[:, :1, :1])
    )
