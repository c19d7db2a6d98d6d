"""SUnSAL-TV and fast-TV: minimisers by certificate, what theory says of easy blocks, the same bytes in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from hpcdeq.sparse import TvResult, centroid_support, fast_tv, lasso, sunsal_tv, total_variation

BANDS, ATOMS = 5, 9


def dictionary() -> Tensor:
    atoms = torch.randn(BANDS, ATOMS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return atoms / atoms.norm(dim=0)


def some_blocks(n: int, height: int, width: int) -> Tensor:
    """Two regions and noise."""
    generator = torch.Generator().manual_seed(2)
    blocks = 0.1 * torch.randn(n, BANDS, height, width, dtype=torch.float64, generator=generator)
    blocks += torch.rand(n, BANDS, 1, 1, dtype=torch.float64, generator=generator)
    blocks[..., width // 2 :] += torch.rand(n, BANDS, 1, 1, dtype=torch.float64, generator=generator)
    return blocks


def combine(atoms: Tensor, codes: Tensor) -> Tensor:
    return torch.einsum("dm,bmyx->bdyx", atoms, codes)


def neighbours(height: int, width: int) -> np.ndarray:
    """Differences of neighbours, as a matrix (pairs, pixels)."""
    rows = []
    for y in range(height):
        for x in range(width):
            for other in ((y + 1, x), (y, x + 1)):
                if other[0] < height and other[1] < width:
                    row = np.zeros((height, width))
                    row[y, x], row[other] = -1, 1
                    rows.append(row.ravel())
    return np.array(rows)


def assert_minimises(codes: Tensor, atoms: Tensor, block: Tensor, l1: float, tv: float) -> None:
    """0 is in the subdifferential: with r = Y - A X there are |P| <= l1, |Q| <= tv of which A^T r = P + Q H, and they are
    subgradients because <A^T r, X> is all of the penalties."""
    a, x = atoms.numpy(), codes.flatten(1).numpy()
    differences = neighbours(*block.shape[1:])
    residual = block.flatten(1).numpy() - a @ x
    force = a.T @ residual
    penalties = l1 * np.abs(x).sum() + tv * np.abs(x @ differences.T).sum()
    assert (force * x).sum() == pytest.approx(penalties, rel=1e-6, abs=1e-7)
    pixels, pairs = force.shape[1], len(differences)
    columns = np.hstack([np.eye(pixels), differences.T])
    bounds = [(-l1, l1)] * pixels + [(-tv, tv)] * pairs + [(0, None)]
    for row in force:  # the images of different atoms share no bound
        # Least largest difference between the row and what P and Q within their bounds can be.
        off = -np.ones((pixels, 1))
        found = linprog(
            [0.0] * (pixels + pairs) + [1.0],
            A_ub=np.vstack([np.hstack([columns, off]), np.hstack([-columns, off])]),
            b_ub=np.concatenate([row, -row]),
            bounds=bounds,
        )
        assert found.success
        assert found.fun < 1e-6


@pytest.mark.parametrize(("l1", "tv"), [(0.05, 0.05), (0.2, 0.02), (0.0, 0.1)])
def test_sunsal_tv_finds_the_minimum(l1: float, tv: float) -> None:
    d, blocks = dictionary(), some_blocks(2, 4, 6)
    result = sunsal_tv(blocks, d, l1, tv, tolerance=1e-9, iterations=20000)
    assert bool(result.converged.all())
    for codes, block in zip(result.coefficients, blocks, strict=True):
        assert_minimises(codes, d, block, l1, tv)


@pytest.mark.parametrize("tv", [0.02, 0.2])
def test_fast_tv_finds_the_minimum(tv: float) -> None:
    d, blocks = dictionary(), some_blocks(2, 4, 6)
    support = torch.tensor([[0, 4, 2], [8, 1, 3]])
    result = fast_tv(blocks, d, support, tv, tolerance=1e-10, iterations=20000)
    assert bool(result.converged.all())
    for codes, block, atoms in zip(result.coefficients, blocks, support, strict=True):
        assert_minimises(codes, d[:, atoms], block, 0.0, tv)


def test_the_certificate_refuses_what_is_not_the_minimum() -> None:
    d, blocks = dictionary(), some_blocks(1, 4, 6)
    result = sunsal_tv(blocks, d, 0.05, 0.05, tolerance=1e-9, iterations=20000)
    with pytest.raises(AssertionError):
        assert_minimises(result.coefficients[0] * 1.001, d, blocks[0], 0.05, 0.05)


def test_without_penalties_sunsal_tv_gives_the_block_back() -> None:
    d, blocks = dictionary(), some_blocks(2, 6, 5)
    result = sunsal_tv(blocks, d, 0.0, 0.0, tolerance=1e-9)
    torch.testing.assert_close(combine(d, result.coefficients), blocks, rtol=0, atol=1e-6)


def test_without_tv_sunsal_tv_is_the_lasso_of_each_pixel() -> None:
    d, blocks = dictionary(), some_blocks(1, 6, 5)
    result = sunsal_tv(blocks, d, 0.1, 0.0, tolerance=1e-9, iterations=20000)
    expected = lasso(blocks[0].flatten(1).T.contiguous(), d, 0.1, tolerance=1e-13).coefficients.T
    torch.testing.assert_close(result.coefficients[0].flatten(1), expected, rtol=0, atol=1e-6)


def test_without_penalty_fast_tv_projects_on_the_atoms() -> None:
    d, blocks = dictionary(), some_blocks(2, 6, 5)
    support = torch.tensor([[0, 4, 2], [8, 1, 3]])
    result = fast_tv(blocks, d, support, 0.0, tolerance=1e-9)
    for codes, block, atoms in zip(result.coefficients, blocks, support, strict=True):
        expected = torch.linalg.lstsq(d[:, atoms], block.flatten(1)).solution
        torch.testing.assert_close(codes.flatten(1), expected, rtol=0, atol=1e-6)


def test_a_constant_block_stays_constant() -> None:
    d = dictionary()
    spectrum = torch.rand(BANDS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    block = spectrum[None, :, None, None].expand(1, BANDS, 7, 6)
    support = torch.tensor([[0, 4, 2]])
    fast = fast_tv(block, d, support, 0.3, tolerance=1e-9)
    expected = torch.linalg.lstsq(d[:, support[0]], spectrum).solution
    torch.testing.assert_close(
        fast.coefficients, expected[None, :, None, None].expand(1, 3, 7, 6), rtol=0, atol=1e-7
    )
    full = sunsal_tv(block, d, 0.1, 0.3, tolerance=1e-9, iterations=20000)
    codes = lasso(spectrum[None], d, 0.1, tolerance=1e-13).coefficients[0]
    torch.testing.assert_close(
        full.coefficients, codes[None, :, None, None].expand(1, ATOMS, 7, 6), rtol=0, atol=1e-6
    )


def test_a_large_tv_penalty_leaves_the_mean_spectrum() -> None:
    d, blocks = dictionary(), some_blocks(1, 6, 5)
    support = torch.tensor([[0, 4, 2]])
    result = fast_tv(blocks, d, support, 100.0, tolerance=1e-9)
    expected = torch.linalg.lstsq(d[:, support[0]], blocks[0].mean((1, 2))).solution
    torch.testing.assert_close(
        result.coefficients, expected[None, :, None, None].expand(1, 3, 6, 5), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_blocks_of_a_line_or_a_pixel(shape: tuple[int, int]) -> None:
    d, blocks = dictionary(), some_blocks(1, *shape)
    result = sunsal_tv(blocks, d, 0.05, 0.05, tolerance=1e-9, iterations=20000)
    assert bool(result.converged.all())
    if shape != (1, 1):
        assert_minimises(result.coefficients[0], d, blocks[0], 0.05, 0.05)
    assert bool(fast_tv(blocks, d, torch.tensor([[1, 2]]), 0.1, tolerance=1e-9).converged.all())


def test_dependent_atoms_and_zero_blocks_do_no_harm() -> None:
    d, blocks = dictionary(), some_blocks(1, 6, 5)
    result = fast_tv(blocks, d, torch.tensor([[3, 3]]), 0.05, tolerance=1e-8, iterations=20000)
    alone = fast_tv(blocks, d, torch.tensor([[3]]), 0.05, tolerance=1e-8, iterations=20000)
    assert bool(result.converged.all())
    # Two equal atoms share one atom's image.
    torch.testing.assert_close(result.coefficients.sum(1), alone.coefficients[:, 0], rtol=0, atol=1e-6)
    nothing = sunsal_tv(torch.zeros_like(blocks), d, 0.1, 0.1)
    assert bool(nothing.converged.all())
    assert not bool(nothing.coefficients.any())
    assert sunsal_tv(blocks[:0], d, 0.1, 0.1).coefficients.shape == (0, ATOMS, 6, 5)


def test_bytes_do_not_depend_on_the_batch() -> None:
    d, blocks = dictionary().float(), some_blocks(5, 11, 13).float()
    support = centroid_support(blocks, d, 3)

    def together(blocks: Tensor, support: Tensor) -> list[TvResult]:
        return [sunsal_tv(blocks, d, 0.05, 0.05), fast_tv(blocks, d, support, 0.1)]

    whole = together(blocks, support)
    assert len(set(whole[1].iterations.tolist())) > 1, "blocks must stop at different times"
    for i in range(len(blocks)):
        assert torch.equal(centroid_support(blocks[i : i + 1], d, 3)[0], support[i])
        for one, all_ in zip(together(blocks[i : i + 1], support[i : i + 1]), whole, strict=True):
            for field in ("coefficients", "primal", "dual", "iterations"):
                assert torch.equal(getattr(one, field)[0], getattr(all_, field)[i])


def test_one_that_may_not_go_on_says_how_far_it_came() -> None:
    d, blocks = dictionary(), some_blocks(1, 6, 5)
    result = sunsal_tv(blocks, d, 0.05, 0.05, tolerance=1e-9, iterations=7)
    assert result.converged.tolist() == [False]
    assert result.iterations.tolist() == [7]
    assert 1e-9 < float(torch.maximum(result.primal, result.dual)) < 1


def test_total_variation_counts_each_pair_of_neighbours_once() -> None:
    image = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 4.0]])
    assert float(total_variation(image)) == (1 + 2 + 1 + 4) + (0 + 2 + 0)
    assert total_variation(image.expand(2, 3, 2, 3)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_coefficients_have_the_type_of_the_blocks(dtype: torch.dtype) -> None:
    blocks = some_blocks(1, 4, 4).to(dtype)
    assert sunsal_tv(blocks, dictionary(), 0.1, 0.1).coefficients.dtype == dtype
    assert fast_tv(blocks, dictionary(), torch.tensor([[1]]), 0.1).coefficients.dtype == dtype


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"l1_penalty": -1.0}, "l1_penalty must be a finite number, at least 0, got -1.0"),
        ({"tv_penalty": float("inf")}, "tv_penalty must be a finite number"),
        ({"tolerance": -1.0}, "tolerance must be a positive number"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"blocks": torch.zeros(BANDS, 3, 3)}, r"blocks must be \(block, band, y, x\)"),
        ({"blocks": torch.zeros(1, BANDS, 3, 3, dtype=torch.int32)}, "blocks must be of a float type"),
        ({"blocks": torch.full((1, BANDS, 3, 3), torch.inf)}, "blocks must be finite"),
        ({"dictionary": torch.ones(BANDS, 3)}, "atoms must have norm 1"),
        ({"dictionary": torch.eye(BANDS + 1)}, r"dictionary must be \(d, M\) with d = 5"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], words: str) -> None:
    arguments = {
        "blocks": some_blocks(1, 3, 3),
        "dictionary": dictionary(),
        "l1_penalty": 0.1,
        "tv_penalty": 0.1,
    }
    with pytest.raises(ValueError, match=words):
        sunsal_tv(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("support", "words"),
    [
        (torch.tensor([[0], [1]]), r"support must be \(block, atoms\) with 1 rows"),
        (torch.arange(6)[None], "1 to 5 columns"),
        (torch.tensor([[ATOMS]]), "support must hold integers from 0 to 8"),
        (torch.tensor([[0.5]]), "support must hold integers"),
    ],
)
def test_bad_supports_are_named(support: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fast_tv(some_blocks(1, 3, 3), dictionary(), support, 0.1)
