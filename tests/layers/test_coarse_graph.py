"""The cells of a slide's tiles against plain loops: which tile is where, which cells touch, and what is averaged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.layers.coarse_graph import cell_means, make_cells, to_tiles
from mil_jax.layers.graph_conv import make_graph

TILES, K, SIDE = 3, 8, 12


@jax.jit
def make(coords, slide_index, neighbors, mask):
    return make_cells(coords, slide_index, make_graph(neighbors, mask), mask, TILES)


def tissue(n: int, seed: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid places of n tiles with holes, and their coordinates somewhere on a slide."""
    cells = np.random.default_rng(seed).permutation(SIDE * SIDE)[:n]
    grid = np.stack([cells % SIDE, cells // SIDE], axis=1)
    return grid, (grid * tile + (700, 90)).astype(np.int32)


def bag(sizes: tuple[int, ...], tiles: tuple[int, ...], bucket: int):
    """Slides side by side in a bucket with garbage in its padding; and the (slide, row, column) of each tile's cell."""
    coords, slide_index = np.full((bucket, 2), -9, np.int32), np.full(bucket, 7, np.int32)
    neighbors, places, first = np.full((bucket, K), 1, np.int32), [], 0
    for slide, (n, tile) in enumerate(zip(sizes, tiles)):
        grid, xy = tissue(n, slide, tile)
        rows = slice(first, first + n)
        lists = nearest_neighbors(xy, K, "a")
        coords[rows], slide_index[rows] = xy, slide
        neighbors[rows] = np.where(lists >= 0, lists + first, -1)
        places += [(slide, *cell[::-1]) for cell in (grid - grid.min(axis=0)) // TILES]
        first += n
    return coords, slide_index, neighbors, np.arange(bucket) < first, places


@pytest.mark.parametrize(
    ("sizes", "tiles"), [((90, 70), (256, 500)), ((1,), (256,)), ((1, 2), (256, 8)), ((160 - 60, 60), (224, 224))]
)
def test_cells_are_those_of_plain_loops(sizes, tiles):
    """Slides of a bag have tiles of their own width; the last bag is full."""
    coords, slide_index, neighbors, mask, places = bag(sizes, tiles, 160)
    if sizes == (1, 2):  # of two tiles the distance is the width, however far apart they lie
        places = [(0, 0, 0), *[(1, int(y), int(x)) for x, y in _apart(coords[1:3])]]
    cells = make(coords, slide_index, neighbors, mask)
    ordered = sorted(set(places))
    numbers = {place: number for number, place in enumerate(ordered)}
    np.testing.assert_array_equal(cells.number, [*map(numbers.get, places), *[0] * (160 - len(places))])
    np.testing.assert_array_equal(cells.real, np.arange(160) < len(ordered))
    for place, number in numbers.items():
        slide, row, column = place
        around = [(slide, row + y, column + x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        np.testing.assert_array_equal(cells.neighbors[number], [numbers.get(other, -1) for other in around])
    assert (np.asarray(cells.neighbors)[len(ordered) :] == -1).all()


def _apart(xy: np.ndarray) -> np.ndarray:
    away = xy - xy.min(axis=0)
    return away // (TILES * np.abs(xy[0] - xy[1]).max())


def test_means_go_to_the_cells_and_back():
    coords, slide_index, neighbors, mask, places = bag((50, 40), (256, 512), 96)
    cells = make(coords, slide_index, neighbors, mask)
    h = np.random.default_rng(0).standard_normal((96, 5)).astype(np.float32)
    back = to_tiles(cell_means(jnp.asarray(h), cells, mask), cells, mask)
    for tile, place in enumerate(places):
        together = [number for number, other in enumerate(places) if other == place]
        np.testing.assert_allclose(back[tile], h[together].mean(axis=0), rtol=0, atol=1e-6)
    assert (np.asarray(back)[90:] == 0).all()
