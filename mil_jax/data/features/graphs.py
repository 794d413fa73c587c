"""The graph of a slide: each tile's nearest tiles by the distance of their upper left corners.

Ties, which are the rule on a grid, are broken by the lower number, so that a slide has one graph on every machine. A k-d tree finds
candidates; distances are compared as whole numbers.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from mil_jax.errors import DataError

_LOOSE = 1.01  # of a tile's width: coordinates in micrometres are rounded
_SPARE = 17  # candidates beyond k: two rings of a grid, within which nearly every tile finds its neighbours


def nearest_neighbors(coords: np.ndarray | None, k: int, slide: str, tile_size: float = math.nan) -> np.ndarray:
    """int32 [n, k]: the numbers of the k tiles nearest to each tile, nearest first, itself left out, from whole coordinates [n, 2].

    Of equally distant tiles the one with the lower number comes first. A slide of n <= k tiles has n - 1 neighbours each; what is
    left of the k places is -1. tile_size: edge of a tile in the unit of the coordinates; NaN = unknown.

    Raises DataError naming the slide where it has no coordinates, two tiles at one place, or tiles whose usual distance is not that of
    tiles that touch or overlap by up to a half.
    """
    if coords is None:
        raise DataError(
            f"slide {slide} has no coordinates, and a graph of neighbours needs them: write its features with coordinates, or leave "
            "--neighbors out"
        )
    coords = np.asarray(coords, np.int64)
    n = len(coords)
    check_distinct(coords, slide, "a graph of neighbours")
    neighbors = np.full((n, k), -1, np.int32)
    wanted = min(k, n - 1)
    if wanted < 1:
        return neighbors
    tree = cKDTree(coords)
    rest, asked = np.arange(n), min(wanted + 1 + _SPARE, n)
    while rest.size:
        found = tree.query(coords[rest], asked)[1]
        distances = np.sum((coords[found] - coords[rest, None]) ** 2, axis=-1)
        distances[found == rest[:, None]] = -1  # itself comes first and is dropped
        order = np.lexsort((found, distances), axis=-1)
        found, distances = (np.take_along_axis(x, order, axis=1) for x in (found, distances))
        neighbors[rest, :wanted] = found[:, 1 : wanted + 1]
        # Tiles as far away as the last candidate may be missing, and one of them may have a lower number.
        open_ended = distances[:, wanted] == distances[:, -1] if asked < n else np.zeros(len(rest), bool)
        rest, asked = rest[open_ended], min(2 * asked, n)
    if n > k:
        _check_step(coords, neighbors[:, 0], slide, tile_size)
    return neighbors


def check_distinct(coords: np.ndarray, slide: str, what: str) -> None:
    """Raises DataError where two tiles lie at the same place, so that `what` has no meaning. coords: [n, 2]."""
    places, counts = np.unique(coords, axis=0, return_counts=True)
    if len(places) < len(coords):
        x, y = places[np.argmax(counts > 1)]
        raise DataError(
            f"slide {slide}: {counts.max()} tiles lie at the same place, ({x}, {y}) among them, so that {what} has no "
            "meaning: tile this slide again without duplicates"
        )


def _check_step(coords: np.ndarray, nearest: np.ndarray, slide: str, tile_size: float) -> None:
    """The contours of some pipelines have grids of their own, so the step is the usual distance, not the smallest."""
    step = float(np.median(np.max(np.abs(coords - coords[nearest]), axis=1)))
    if not math.isnan(tile_size) and not tile_size / 2 <= step * _LOOSE <= tile_size * _LOOSE**2:
        raise DataError(
            f"slide {slide}: its tiles lie {step:g} apart, but a tile is {tile_size:g} wide, so that tiles which are neighbours here are "
            "none in the tissue: give coordinates and tile size at the same level, and all tiles of the grid"
        )
