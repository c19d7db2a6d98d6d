from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.tiling import Window, blend_weights, cells_along, partition, tiles_of

SIZES = st.integers(1, 120)


@given(SIZES, SIZES, st.integers(1, 90), st.integers(1, 90))
def test_every_pixel_has_exactly_one_owner(height: int, width: int, step_y: int, step_x: int) -> None:
    owners = np.zeros((height, width), int)
    windows = list(partition(height, width, step_y, step_x))
    for window in windows:
        assert 0 < window.height <= step_y
        assert 0 < window.width <= step_x
        owners[window.slices] += 1
    assert (owners == 1).all()
    assert windows == sorted(windows), "row by row"


@given(SIZES, SIZES, st.integers(1, 50), st.data())
def test_tiles_cover_the_scene_with_the_overlap_asked_for(
    height: int, width: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    tiles = tiles_of(height, width, tile, overlap)
    covered = np.zeros((height, width), int)
    for t in tiles:
        assert (t.height, t.width) == (min(tile, height), min(tile, width))
        covered[t.slices] += 1
    assert covered.min() >= 1
    assert tiles == sorted(tiles, key=lambda t: (t.y0, t.x0))
    rows = sorted({t.y0 for t in tiles})
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(rows))


@given(SIZES, SIZES, st.integers(1, 50), st.data())
def test_tiles_touching_a_window_are_those_of_the_scene(
    height: int, width: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    y0, x0 = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(y0, data.draw(st.integers(y0 + 1, height)), x0, data.draw(st.integers(x0 + 1, width)))
    touching = [
        t
        for t in tiles_of(height, width, tile, overlap)
        if min(t.intersect(window).height, t.intersect(window).width) > 0
    ]
    assert tiles_of(height, width, tile, overlap, touching=window) == touching


def test_the_scene_of_the_paper() -> None:
    starts = sorted({t.y0 for t in tiles_of(1300, 1300, 60, 0)})
    assert starts == [*range(0, 1260, 60), 1240]


@given(st.integers(4, 80), st.data())
def test_weights_of_neighbours_sum_to_one(tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    weights = blend_weights(tile, tile, overlap)
    assert weights.min() > 0
    row = np.sqrt(np.diag(weights))  # a pixel's weight is the product of those along its row and its column
    if overlap:
        np.testing.assert_allclose(row[-overlap:] + row[:overlap], 1.0, atol=1e-6)
    np.testing.assert_allclose(row[overlap : tile - overlap], 1.0)


def test_weights_are_a_raised_cosine_along_each_side_and_1_inside() -> None:
    ramp = np.sin(np.pi / 2 * np.array([1 / 6, 3 / 6, 5 / 6])) ** 2
    weights = blend_weights(9, 8, 3)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights[4], [*ramp, 1, 1, *ramp[::-1]], rtol=1e-6)
    np.testing.assert_allclose(weights[:, 4], [*ramp, 1, 1, 1, *ramp[::-1]], rtol=1e-6)
    np.testing.assert_allclose(weights, np.outer(weights[:, 4], weights[4]), rtol=1e-6)
    assert (blend_weights(3, 2, 0) == 1).all()


def test_a_window_is_moved_and_cut_as_a_slice_is() -> None:
    window = Window(1, 4, 2, 7)
    assert (window.height, window.width) == (3, 5)
    assert window.shift(10, -2) == Window(11, 14, 0, 5)
    assert window.intersect(Window(2, 9, 0, 3)) == Window(2, 4, 2, 3)
    assert window.intersect(Window(4, 9, 2, 7)).height <= 0
    assert window.intersect(Window(1, 4, 8, 9)).width <= 0


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "rule"),
    [
        ((100, 100), 60, 60, r"overlap must be in \[0, 60\) for tiles of 60 pixels, got 60"),
        ((100, 100), 60, -1, r"overlap must be in \[0, 60\) for tiles of 60 pixels, got -1"),
        ((100, 100), 0, 0, "height, width and tile must be positive, got 100, 100, 0"),
        ((0, 100), 60, 0, "height, width and tile must be positive, got 0, 100, 60"),
        ((100, 0), 60, 0, "height, width and tile must be positive, got 100, 0, 60"),
    ],
)
def test_impossible_tiles_are_refused(size: tuple[int, int], tile: int, overlap: int, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{rule}$"):
        tiles_of(*size, tile, overlap)


def test_a_scene_no_larger_than_a_tile_has_one_tile_of_its_own_size() -> None:
    assert tiles_of(1, 1, 1, 0) == [Window(0, 1, 0, 1)]
    assert tiles_of(5, 60, 60, 20) == [Window(0, 5, 0, 60)]


@given(size=st.integers(1, 300), tile=st.integers(1, 80), data=st.data())
def test_every_pixel_is_owned_by_one_tile_that_covers_it_and_neighbours_share_in_halves(
    size: int, tile: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    cells = cells_along(size, tile, overlap)
    owned = [pixel for first, end in cells.values() for pixel in range(first, end)]
    assert owned == list(range(size))
    assert all(start <= first < end <= start + tile for start, (first, end) in cells.items())
    assert list(cells) == sorted({t.x0 for t in tiles_of(1, size, tile, overlap)})
    for (start, (_, border)), after in itertools.pairwise(cells.items()):
        assert 0 <= (start + tile - border) - (border - after[0]) <= 1
