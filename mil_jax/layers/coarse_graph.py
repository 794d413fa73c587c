"""A coarse graph over the tiles of a slide: square cells of s x s tiles, joined to those of their eight neighbouring cells that hold tiles.

The cells of a slide begin at its upper left corner; a tile is as wide as the median distance to the nearest tile, so that coordinates may
be in any unit. A bag has at most as many cells as tiles: their arrays have the length N of the bag, too. Cells never cross slides.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mil_jax.layers.graph_conv import Graph
from mil_jax.types import Array

_FAR = jnp.iinfo(jnp.int32).max


class Cells(NamedTuple):
    """number: int32 [N], the cell of each tile, 0 for padding. real: [N], whether there is a cell of this number; cells are in the order
    of slide, row and column. neighbors: int32 [N, 8], the cells beside each cell, -1 for none.
    """

    number: Array
    real: Array
    neighbors: Array


def make_cells(coords: Array, slide_index: Array | None, graph: Graph, mask: Array, tiles: int) -> Cells:
    """Cells of `tiles` x `tiles` tiles. coords: [N, 2]. graph: of the tiles. Padded rows of the arrays may hold anything."""
    size = len(mask)
    slide = jnp.where(mask, 0 if slide_index is None else slide_index, size)
    xy = jnp.where(mask[:, None], coords, 0)
    width = tiles * _tile_width(xy, slide, graph)  # [N], of each slide
    origin = jax.ops.segment_min(xy, slide, size)
    # Slide, row and column; padding is a cell of its own behind the others, or where the bag is full there is none.
    at_home = jnp.minimum(slide, size - 1)
    column, row = jnp.where(mask[:, None], (xy - origin[at_home]) // width[at_home, None], 0).T
    place = jnp.stack([slide, row, column], axis=1)  # [N, 3]
    order = jnp.lexsort(place.T[::-1])
    ordered = place[order]
    starts = jnp.any(ordered != jnp.roll(ordered, 1, axis=0), axis=1).at[0].set(True)
    numbers = jnp.cumsum(starts) - 1
    number = jnp.zeros(size, jnp.int32).at[order].set(numbers)
    count = jnp.sum(starts & mask[order])
    cell_place = ordered[jnp.minimum(jnp.searchsorted(numbers, jnp.arange(size)), size - 1)]
    around = jnp.array([(0, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    beside = _find(cell_place, count, (cell_place[:, None] + around).reshape(-1, 3)).reshape(size, 8)
    real = jnp.arange(size) < count
    return Cells(jnp.where(mask, number, 0), real, jnp.where(real[:, None], beside, -1))


def cell_means(h: Array, cells: Cells, mask: Array) -> Array:
    """Mean over the tiles of each cell: h [N, d] -> [N, d], 0 where there is no cell."""
    total = jax.ops.segment_sum(jnp.where(mask[:, None], h, 0.0), cells.number, len(mask))
    count = jax.ops.segment_sum(mask.astype(h.dtype), cells.number, len(mask))
    return total / jnp.maximum(count, 1.0)[:, None]


def to_tiles(h: Array, cells: Cells, mask: Array) -> Array:
    """What the cell of each tile holds: h [N, d] of cells -> [N, d] of tiles, 0 on padding."""
    return jnp.where(mask[:, None], h[cells.number], 0.0)


def _tile_width(xy: Array, slide: Array, graph: Graph) -> Array:
    """The median over a slide's tiles of the distance to the nearest, by the larger of both axes: int32 [N], at least 1, by slide."""
    size = len(xy)
    apart = jnp.max(jnp.abs(xy[graph.target] - xy[:, None]), axis=-1)  # [N, k]
    nearest = jnp.min(jnp.where(graph.valid, apart, _FAR), axis=1, initial=_FAR)
    owner = jnp.where(nearest < _FAR, slide, size)  # lonely tiles, and padding, come last
    order = jnp.lexsort((nearest, owner))
    bounds = jnp.searchsorted(owner[order], jnp.arange(size + 1))
    count = jnp.diff(bounds)
    median = nearest[order][jnp.minimum(bounds[:-1] + count // 2, size - 1)]
    return jnp.where(count > 0, jnp.maximum(median, 1), 1)


def _find(places: Array, count: Array, wanted: Array) -> Array:
    """Where each of `wanted` [M, 3] stands among the first `count` of the ordered `places` [N, 3]: int32 [M], -1 where it does not."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        found = places[middle]
        below = found[:, 2] < wanted[:, 2]
        for axis in (1, 0):
            below = (found[:, axis] < wanted[:, axis]) | ((found[:, axis] == wanted[:, axis]) & below)
        still = low < high
        return jnp.where(still & below, middle + 1, low), jnp.where(still & ~below, middle, high)

    ends = jnp.zeros(len(wanted), count.dtype), jnp.full(len(wanted), count)
    low, _ = jax.lax.fori_loop(0, len(places).bit_length(), halve, ends)
    there = jnp.minimum(low, len(places) - 1)
    hit = (low < count) & jnp.all(places[there] == wanted, axis=1)
    return jnp.where(hit, there, -1)
