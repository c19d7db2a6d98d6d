"""LLRT: low-rank groups of non-local full-band patches, and spectra whose differences are sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hpcdeq.peers.patches import CHUNK, Aggregate, check_input, gather, pixels_of, positions, similar_patches

_GREY = 255  # the authors' constants are for scenes in 0..255


@dataclass(frozen=True, slots=True, kw_only=True)
class LlrtSettings:
    """Settings of LLRT; the defaults are those of the authors' code for hyperspectral scenes (``ParSet.m``)."""

    patch: int | None = None
    """Edge of a patch in pixels; by default 6 up to sigma 10/255, 7 up to 30/255, 8 above."""
    step: int = 5
    """Distance of reference patches in pixels."""
    window: int = 30
    """Similar patches start at most so many pixels away."""
    group: int = 300
    """Patches in a group; every second iteration finds groups anew, with 10 fewer, also the first one."""
    iterations: int = 4
    """Outer iterations: low-rank groups, then spectra."""
    rank_weight: float = 10 * math.sqrt(2)
    """How strongly small singular values are shrunk (the authors' c1)."""
    noise_share: float | None = None
    """Share of the noise estimate of a patch that counts after the first iteration (the authors' lamada); by default 0.54,
    0.56, 0.58 for the three ranges of sigma."""
    inner_iterations: int = 20
    """Steps of the alternating directions for the spectra."""
    spectral_weight: float = 0.8
    """Weight of the spectral differences (lambda)."""
    exponent: float = 1.0
    """Power of the spectral differences. The paper speaks of a hyper-Laplacian (below 1); the authors' code uses 1 and says
    that it is slightly better."""
    data_weight: float = 0.05
    """Weight of the noisy scene in the spectra's step (kappa)."""
    coupling: float = 10.0
    """First penalty that ties the spectra to the low-rank groups (alpha)."""
    splitting: float = 1.0
    """First penalty that ties the spectral differences to their sparse copy (beta)."""
    growth: float = 1.02
    """Both penalties grow by this factor at each step."""

    def __post_init__(self) -> None:
        if self.patch is not None and self.patch < 2:
            raise ValueError(f"patch must be at least 2 pixels, got {self.patch}")
        for name in ("step", "window", "iterations", "inner_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        fewest = 10 * ((self.iterations + 1) // 2) + 2
        if self.group < fewest:
            raise ValueError(
                f"group must be at least {fewest} patches for {self.iterations} iterations, for it loses 10 "
                f"at every second one; got {self.group}"
            )
        if self.step > (self.patch or 6):
            raise ValueError(
                f"step must be at most the edge of a patch, or pixels are left out; got {self.step}"
            )
        if not 0 < self.exponent <= 1:
            raise ValueError(f"exponent must be above 0 and at most 1, got {self.exponent}")
        if self.noise_share is not None and not self.noise_share >= 0:
            raise ValueError(f"noise_share must not be negative, got {self.noise_share}")
        for name in ("rank_weight", "spectral_weight", "data_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("coupling", "splitting", "growth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


_DEFAULTS = LlrtSettings()


def llrt(scene: Tensor, sigma: float, settings: LlrtSettings = _DEFAULTS) -> Tensor:
    """Denoise a scene by hyper-Laplacian regularised unidirectional low-rank tensor recovery (LLRT).

    Similar full-band patches, found on the mean of the bands, form matrices (patch, values) whose singular values are
    shrunk, small ones more (reweighted nuclear norm). Averaged, they are the data of a second problem, in which the
    differences of neighbouring bands are sparse; it is solved by alternating directions. Both are repeated; later rounds
    start from the estimate, and shrink each group by the noise that is still in it.

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
    spectral differences stop at the last band, where the code goes round to the first one; the spectra's step starts at
    the average of the groups and its differences, not at zero; left-over rows and columns have one reference patch more,
    not one for each pixel; groups are smaller where a window holds fewer patches. The noisy scene comes back in each round
    through the noise left in a patch and the data weight only: neither the code nor this adds the residual itself. The
    results were not compared with MATLAB's.

    References
    ----------
    Chang, Yan, Zhong: *Hyper-Laplacian regularized unidirectional low-rank tensor recovery for multispectral image
    denoising*, CVPR 2017, doi:10.1109/CVPR.2017.625.
    """
    noise = sigma * _GREY
    # A tenth more, so that 10 / 255 * 255 is 10.
    usual_patch, usual_share = (6, 0.54) if noise <= 10.1 else (7, 0.56) if noise <= 30.1 else (8, 0.58)
    patch = settings.patch or usual_patch
    share = usual_share if settings.noise_share is None else settings.noise_share
    check_input(scene, sigma, patch)
    bands, height, width = scene.shape
    noisy = scene.permute(1, 2, 0).reshape(-1, bands).float() * _GREY
    corners = positions((height, width), patch, settings.step).to(scene.device)
    estimate = noisy
    level = torch.full((height - patch + 1, width - patch + 1), noise, device=scene.device)
    for iteration in range(settings.iterations):
        if iteration % 2 == 0:
            image = estimate.mean(1).reshape(height, width)
            count = settings.group - 10 * (iteration // 2 + 1)
            similar = similar_patches(image, corners, patch, settings.window, count)
        if iteration > 0:
            removed = (noisy - estimate).square_().mean(1).reshape(1, height, width)
            level = share * (noise**2 - avg_pool2d(removed, patch, stride=1)[0]).abs().sqrt()
        groups = Aggregate(noisy)
        levels = level[corners[:, 0], corners[:, 1]]
        chunk = max(1, CHUNK // (similar.shape[1] * patch * patch * bands))
        for members, left in zip(similar.split(chunk), levels.split(chunk), strict=True):
            pixels = pixels_of(members, patch, width)
            found = gather(estimate, pixels)
            matrices = found.flatten(2)
            mean = matrices.mean(1, keepdim=True)
            weight = settings.rank_weight * 2 * math.sqrt(members.shape[1]) * left.square()
            groups.add(pixels, shrink_singular_values(matrices - mean, weight) + mean)
        threshold = settings.spectral_weight * float(level.mean()) ** 2
        estimate = _spectra(noisy, groups, threshold, settings)
    return (estimate / _GREY).reshape(height, width, bands).permute(2, 0, 1).to(scene.dtype).contiguous()


def shrink_singular_values(matrices: Tensor, weight: Tensor) -> Tensor:
    """Shrink singular values s to x = s - weight / x, or to 0 where there is no such x: the reweighted nuclear norm.

    That x is the limit of soft thresholds weight / x, each with the x before it, from x = s on: in closed form
    (s + sqrt(s^2 - 4 weight)) / 2. Where it is not 0 it is a minimiser of (x - s)^2 / 2 + weight log x.

    Parameters
    ----------
    matrices
        (matrix, row, column).
    weight
        (matrix,).

    References
    ----------
    Gu, Xie, Meng, Zuo, Feng, Zhang: *Weighted nuclear norm minimization and its applications to low level vision*,
    Int. J. Comput. Vis. 121, 2017, doi:10.1007/s11263-016-0930-5.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return shrink_singular_values(matrices.transpose(1, 2), weight).transpose(1, 2)
    squares, vectors = torch.linalg.eigh(matrices @ matrices.transpose(1, 2))
    discriminant = squares - 4 * weight[:, None]
    singular = squares.clamp_min(0).sqrt()
    kept = (discriminant > 0) & (squares > 0)
    factor = torch.where(
        kept,
        (1 + discriminant.clamp_min(0).sqrt() / singular.clamp_min(1e-30)) / 2,
        torch.zeros_like(squares),
    )
    # Eigenvalues ascend, so what is kept is at the end.
    most = int(kept.sum(1).max())
    basis = vectors[:, :, matrices.shape[1] - most :]
    shrunk = basis * factor[:, None, matrices.shape[1] - most :]
    rows = basis.transpose(1, 2)
    # The cheaper order of the two products.
    result: Tensor = (
        (shrunk @ rows) @ matrices if 2 * most > matrices.shape[1] else shrunk @ (rows @ matrices)
    )
    return result


def shrink_power(values: Tensor, weight: float, exponent: float) -> Tensor:
    """Minimise (x - value)^2 / 2 + weight |x|^exponent for each value, exponent in (0, 1] (generalised soft thresholding).

    Below a threshold the minimiser is 0; above, it is the larger root of x - |value| + weight * exponent * x^(exponent - 1),
    to which Newton's method falls from |value|, for the function is convex.

    References
    ----------
    Krishnan, Fergus: *Fast image deconvolution using hyper-Laplacian priors*, NIPS 2009; Zuo, Meng, Zhang, Feng, Zhang:
    *A generalized iterated shrinkage algorithm for non-convex sparse coding*, ICCV 2013, doi:10.1109/ICCV.2013.34.
    """
    if weight == 0:
        return values
    if exponent == 1:
        return values - values.clamp(-weight, weight)
    smallest = (2 * weight * (1 - exponent)) ** (1 / (2 - exponent))
    threshold = smallest + weight * exponent * smallest ** (exponent - 1)
    size = values.abs()
    kept = size > threshold
    target = torch.where(kept, size, threshold)
    x = target
    for _ in range(6):
        pull = weight * exponent * x ** (exponent - 1)
        x = x - (x - target + pull) / (1 - (1 - exponent) * pull / x)
    return torch.where(kept, x * values.sign(), 0.0)


def differences(bands: int, device: torch.device) -> Tensor:
    """(band - 1, band) matrix that takes each band from the next one."""
    one = torch.eye(bands, device=device)
    return one[1:] - one[:-1]


def solve_spectra(right: Tensor, splitting: float, ridge: float) -> Tensor:
    """Solve (splitting D^T D + ridge I) x = right for each row, D the differences of neighbouring bands."""
    d = differences(right.shape[1], right.device).double()
    system = splitting * d.T @ d + ridge * torch.eye(right.shape[1], device=right.device, dtype=torch.float64)
    # Small and well conditioned (ridge > 0), and used for every pixel.
    solved: Tensor = right @ torch.linalg.inv(system).to(right.dtype)
    return solved


def _spectra(noisy: Tensor, groups: Aggregate, threshold: float, settings: LlrtSettings) -> Tensor:
    """Minimise over spectra x: data |x - noisy|^2 / 2 + sum over patches |x - patch|^2 / 2 + threshold |D x|_p^p.

    By alternating directions, with copies z of D x and m of x that the patches pull at; every pixel is a problem of its own.
    """
    chunk = max(1, CHUNK // (8 * noisy.shape[1]))
    d = differences(noisy.shape[1], noisy.device)
    parts = []
    for data, total, weight in zip(
        noisy.split(chunk), groups.total.split(chunk), groups.weight.split(chunk), strict=True
    ):
        alpha, beta = settings.coupling, settings.splitting
        m = total / weight
        m_dual = torch.zeros_like(m)
        z = m @ d.T
        z_dual = torch.zeros_like(z)
        for _ in range(settings.inner_iterations):
            right = settings.data_weight * data + alpha * m - m_dual + (beta * z - z_dual) @ d
            x = solve_spectra(right, beta, alpha + settings.data_weight)
            m = (total + alpha * x + m_dual) / (alpha + weight)
            m_dual = m_dual + alpha * (x - m)
            alpha *= settings.growth
            slope = x @ d.T
            z = shrink_power(slope + z_dual / beta, threshold / beta, settings.exponent)
            z_dual = z_dual + beta * (slope - z)
            beta *= settings.growth
        parts.append(x)
    return torch.cat(parts)
