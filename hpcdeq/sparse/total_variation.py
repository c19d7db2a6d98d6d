"""Anisotropic total variation of coefficient images, and least squares problems that it regularises."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcdeq.sparse.cosines import cosine_basis
from hpcdeq.sparse.pursuit import check_dictionary

# Images that are worked on together on a CPU: what an iteration needs of them stays in a core's cache.
_PIXELS_AT_ONCE_CPU = 1 << 17
# ADMM looks at its residuals every so many iterations, and may then change its parameter rho. It is sure to converge only
# once rho is fixed, hence a last change.
_LOOK = 10
_LAST_CHANGE = 300
_BALANCED, _MOST_CHANGE = 1.5, 10.0
_FIRST_RHO = 1.0
_RELAXATION = 1.6
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class TvResult:
    """Coefficient images of many blocks, and how far each block's iterations came (on the CPU)."""

    coefficients: Tensor
    """(block, atom, y, x), of the blocks' dtype."""
    primal: Tensor
    """(block,) float64: ``||K X - V|| / ||X||`` when the block stopped: by how much ADMM's copies V differ from what they copy."""
    dual: Tensor
    """(block,) float64: ``||A^T (A X - Y) + rho K^T U|| / ||A^T Y||`` when the block stopped: how far from 0 the gradient
    still is, where rho U is a subgradient of the penalties at V."""
    iterations: Tensor
    """(block,) int64."""
    converged: Tensor
    """(block,) bool: both residuals at most the tolerance."""


def total_variation(images: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels, down and across, of images ``(..., y, x)``: shape ``(...)``.

    There are no differences across the border of an image (Neumann boundary).
    """
    down, across = differences(images)
    return down.abs().sum(dim=(-2, -1)) + across.abs().sum(dim=(-2, -1))


def differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels of ``(..., y, x)``: ``(..., y - 1, x)`` down and ``(..., y, x - 1)`` across."""
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]


def check_blocks(blocks: Tensor, dictionary: Tensor) -> None:
    """Raise ValueError unless ``blocks`` is a finite float tensor (B, d, y, x) and ``dictionary`` (d, M) fits it."""
    if blocks.ndim != 4 or 0 in blocks.shape[1:]:
        raise ValueError(f"blocks must be (block, band, y, x) with pixels, got shape {tuple(blocks.shape)}")
    if not blocks.is_floating_point():
        raise ValueError(f"blocks must be of a float type, got {blocks.dtype}")
    if not bool(torch.isfinite(blocks).all()):
        raise ValueError("blocks must be finite, but some hold NaN or infinity")
    check_dictionary(dictionary, blocks[:, :, 0, 0])


def solve_blocks(
    blocks: Tensor,
    atoms: Tensor,
    tv_penalty: float,
    l1_penalty: float | None,
    tolerance: float,
    iterations: int,
) -> TvResult:
    """Run `solve_block` on blocks (block, band, y, x), each with its own atoms (block, band, m), one after another."""
    work = torch.promote_types(blocks.dtype, torch.float32)
    coefficients = blocks.new_empty(len(blocks), atoms.shape[2], *blocks.shape[2:])
    primal, dual = torch.zeros(2, len(blocks), dtype=torch.float64)
    count = torch.zeros(len(blocks), dtype=torch.int64)
    for i, block in enumerate(blocks):
        # In memory of its own: how operands are aligned can change how products round.
        own = block.detach().to(work).clone(memory_format=torch.contiguous_format)
        coefficients[i], primal[i], dual[i], count[i] = solve_block(
            own, atoms[i].detach().to(work), tv_penalty, l1_penalty, tolerance, iterations
        )
    return TvResult(
        coefficients=coefficients,
        primal=primal,
        dual=dual,
        iterations=count,
        converged=torch.maximum(primal, dual) <= tolerance,
    )


def solve_block(
    block: Tensor,
    atoms: Tensor,
    tv_penalty: float,
    l1_penalty: float | None,
    tolerance: float,
    iterations: int,
) -> tuple[Tensor, float, float, int]:
    """Minimise ``1/2 ||A X - Y||_F^2 + l1 ||X||_1 + tv TV(X)`` over the images X of one block, by ADMM.

    Copies V of ``K X``, the differences of X and, with ``l1_penalty``, X itself, bear the penalties. The other half of an
    iteration is one linear system, ``(A^T A + rho K^T K) X = A^T Y + rho K^T (V - U)``. K^T K is diagonal in the basis
    of the discrete cosine transform (its Laplacian has Neumann boundary), A^T A in that of A's right singular vectors, of
    which there are no more than bands (Woodbury's identity does the rest): the system is solved exactly, for any
    rho, which may change to balance the residuals.

    Parameters
    ----------
    block
        Y (d, y, x).
    atoms
        A (d, m).
    l1_penalty
        None where X itself has no penalty and no copy; then m <= d, and of dependent atoms X has mean 0 along their null space.
    tolerance, iterations
        Stop when both residuals of `TvResult` are at most the first, or after the second.

    Returns
    -------
    tuple
        X (m, y, x); primal and dual residual; iterations.

    References
    ----------
    Boyd, Parikh, Chu, Peleato, Eckstein: *Distributed optimization and statistical learning via the alternating
    direction method of multipliers*, 2011, doi:10.1561/2200000016, sections 3.3 (residuals) and 3.4 (over-relaxation,
    balancing the residuals).
    """
    m, (_, height, width) = atoms.shape[1], block.shape
    bases = cosine_basis(height, block), cosine_basis(width, block)
    stiffness = _laplacian(height, block)[:, None] + _laplacian(width, block)
    if l1_penalty is not None:
        stiffness = stiffness + 1
    left, scale, right = torch.linalg.svd(atoms.double(), full_matrices=False)
    left, scale, right = (x.to(block.dtype) for x in (left, scale, right))
    curvature = (scale * scale)[:, None, None]
    anchor = scale[:, None, None] * _product(left.T, _transform(block, bases))
    slope = float(torch.linalg.vector_norm(anchor))  # of A^T Y, the gradient at X = 0
    wide = m > len(scale)  # the null space of A needs the second term of Woodbury's identity

    step = m if block.is_cuda else max(1, _PIXELS_AT_ONCE_CPU // (height * width))
    chunks = [slice(i, min(i + step, m)) for i in range(0, m, step)]
    copies = [_Copies(c.stop - c.start, block, l1_penalty is not None) for c in chunks]
    x = torch.empty(m, height, width, dtype=block.dtype, device=block.device)
    pulls = torch.empty_like(x)  # DCT of K^T (V - U)
    rho, primal, dual = _FIRST_RHO, math.inf, math.inf
    for iteration in range(1, iterations + 1):
        looking = iteration % _LOOK == 0 or iteration == iterations
        shared = torch.zeros_like(anchor)
        for chunk, copy in zip(chunks, copies, strict=True):
            pulls[chunk] = _transform(copy.pull(), bases)
            shared += _product(right[:, chunk], pulls[chunk])
        core = (anchor + rho * shared) / (curvature + rho * stiffness).clamp_min(_TINY)
        if wide:
            core -= shared / stiffness
        squares = torch.zeros(3, dtype=torch.float64, device=block.device)
        for chunk, copy in zip(chunks, copies, strict=True):
            images = _product(right[:, chunk].T, core)
            if wide:
                images += pulls[chunk] / stiffness
            images = _transform(images, (bases[0].T, bases[1].T))
            squares += copy.push(images, tv_penalty / rho, (l1_penalty or 0.0) / rho, looking)
            if looking:
                x[chunk] = images
        if not looking:
            continue
        size, apart, gradient = squares.sqrt().tolist()
        primal, dual = _ratio(apart, size), _ratio(rho * gradient, slope)
        if max(primal, dual) <= tolerance:
            break
        if iteration <= _LAST_CHANGE:
            change = min(max(math.sqrt(primal / max(dual, _TINY)), 1 / _MOST_CHANGE), _MOST_CHANGE)
            if not 1 / _BALANCED < change < _BALANCED:
                rho *= change
                for copy in copies:
                    copy.rescale(1 / change)
    return x, primal, dual, iteration


class _Copies:
    """V and U of some images: ADMM's copies of ``K X`` and their scaled multipliers."""

    def __init__(self, images: int, like: Tensor, itself: bool) -> None:
        _, height, width = like.shape
        shapes = [(height - 1, width), (height, width - 1)] + [(height, width)] * itself
        self._copies = [like.new_zeros(images, *shape) for shape in shapes]
        self._multipliers = [like.new_zeros(images, *shape) for shape in shapes]

    def pull(self) -> Tensor:
        """K^T (V - U)."""
        return _adjoint([v - u for v, u in zip(self._copies, self._multipliers, strict=True)])

    def push(self, images: Tensor, tv: float, l1: float, looking: bool) -> Tensor:
        """Update V and U from X; when looking, return the squares of the norms of ``X``, ``K X - V`` and the gradient over rho."""
        targets = [*differences(images), images][: len(self._copies)]
        squares = torch.zeros(3, dtype=torch.float64, device=images.device)
        left = []
        for i, (target, threshold) in enumerate(zip(targets, (tv, tv, l1), strict=False)):
            copy, multiplier = self._copies[i], self._multipliers[i]
            new = torch.lerp(copy, target, _RELAXATION)
            new += multiplier
            torch.clamp(new, -threshold, threshold, out=multiplier)
            new -= multiplier
            self._copies[i] = new
            if looking:
                apart = target - new
                squares[1] += _square(apart)
                # What A^T (A X - Y) + rho K^T U comes to once the linear system is put in for its first part.
                copy -= new
                left.append(copy.mul_(2 - _RELAXATION).add_(apart, alpha=_RELAXATION - 1))
        if looking:
            squares[0] = _square(images)
            squares[2] = _square(_adjoint(left))
        return squares

    def rescale(self, factor: float) -> None:
        for multiplier in self._multipliers:
            multiplier *= factor


def _adjoint(parts: list[Tensor]) -> Tensor:
    """K^T of (down, across), or of (down, across, itself), which is overwritten."""
    down, across, *itself = parts
    images = itself[0] if itself else down.new_zeros(len(down), down.shape[1] + 1, down.shape[2])
    images[:, 1:] += down
    images[:, :-1] -= down
    images[:, :, 1:] += across
    images[:, :, :-1] -= across
    return images


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _square(values: Tensor) -> Tensor:
    squared: Tensor = torch.linalg.vector_norm(values).double().square()
    return squared


def _product(matrix: Tensor, images: Tensor) -> Tensor:
    """Mix images (m, y, x) by a matrix (k, m)."""
    mixed: Tensor = (matrix @ images.flatten(1)).unflatten(1, images.shape[1:])
    return mixed


def _transform(images: Tensor, bases: tuple[Tensor, Tensor]) -> Tensor:
    """Two-dimensional discrete cosine transform; its inverse, with transposed bases.

    By products: for sides of some dozen pixels they are as fast as a fast Fourier transform, and PyTorch has none for cosines.
    """
    down, across = bases
    return down @ (images @ across.T)


def _laplacian(size: int, like: Tensor) -> Tensor:
    """Eigenvalues of the adjoint of differences times differences along a line, in the order of the basis."""
    k = torch.arange(size, dtype=torch.float64, device=like.device)
    return (4 * torch.sin(math.pi / (2 * size) * k).square()).to(like.dtype)
