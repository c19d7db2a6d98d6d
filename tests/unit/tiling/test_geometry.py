from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdeq.tiling import Window, blend_weights, cells_along, partition, tiles_of

SIZES = st.integers(1, 300)


@given(SIZES, SIZES, st.integers(1, 90), st.integers(1, 90))
def test_every_pixel_has_exactly_one_owner(height: int, width: int, step_y: int, step_x: int) -> None:
    owners = np.zeros((height, width), int)
    for window in partition(height, width, step_y, step_x):
        owners[window.slices] += 1
    assert (owners == 1).all()


@given(SIZES, SIZES, st.integers(1, 70), st.data())
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


@given(SIZES, SIZES, st.integers(1, 70), st.data())
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
    row = weights[tile // 2] / weights.max()
    if overlap:
        np.testing.assert_allclose(row[-overlap:] + row[:overlap], 1.0, atol=1e-6)
    np.testing.assert_allclose(row[overlap : tile - overlap], 1.0)


@pytest.mark.parametrize(("tile", "overlap"), [(60, 60), (60, -1), (0, 0)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        tiles_of(100, 100, tile, overlap)


@given(size=st.integers(1, 300), tile=st.integers(1, 80), data=st.data())
def test_every_pixel_is_owned_by_one_tile_that_covers_it(size: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    cells = cells_along(size, tile, overlap)
    owned = [pixel for first, end in cells.values() for pixel in range(first, end)]
    assert owned == list(range(size))
    assert all(start <= first < end <= start + tile for start, (first, end) in cells.items())
    assert list(cells) == sorted({t.x0 for t in tiles_of(1, size, tile, overlap)})
