"""Features of two magnifications in one: every tile joined with the larger tile that contains it (DSMIL-LC of Li et al. 2021).

The reference pairs tiles by the folders that its tiling writes; here they are paired by their level-0 coordinates.
"""

from __future__ import annotations

import numpy as np

from mil_jax.errors import DataError

LOW_SHARE = 0.25  # of the low magnification in "fusion"


def join_scales(
    high: np.ndarray,
    high_coords: np.ndarray,
    low: np.ndarray,
    low_coords: np.ndarray,
    low_tile_size: int,
    mode: str = "cat",
    parent: np.ndarray | None = None,
) -> np.ndarray:
    """Features of the high magnification, each with that of the low-magnification tile which holds its upper left corner.

    high: [N, D]; low: [M, D2]; coords: [., 2] level-0 pixels (x, y) of upper left corners, of tiles that do not overlap.
    low_tile_size: edge of a low-magnification tile in level-0 pixels. parent: [N], the row of `low` for each tile, where that is known;
    coordinates are then not read. mode: "cat" gives [high | low] [N, D + D2], "fusion" gives
    high + 0.25 low [N, D]. Low-magnification tiles that hold no tile are dropped.
    Raises DataError when a tile lies in none, when low-magnification tiles overlap off their grid, or when the widths do not fit.
    """
    if mode not in ("cat", "fusion"):
        raise DataError(f"scales are joined by 'cat' or 'fusion', not {mode!r}")
    if mode == "fusion" and high.shape[1] != low.shape[1]:
        raise DataError(
            f"'fusion' adds features of equal width, but they are {high.shape[1]} and {low.shape[1]} wide; use 'cat'"
        )
    rows = _rows(high_coords, low_coords, low_tile_size) if parent is None else np.asarray(parent)
    if parent is not None and (len(rows) != len(high) or (rows.size and not 0 <= rows.min() <= rows.max() < len(low))):
        raise DataError(
            f"the list of parents, {len(rows)} of {len(high)} tiles, names rows that the low magnification's {len(low)} tiles have not: "
            "encode both magnifications of one tiling"
        )
    if mode == "cat":
        return np.concatenate([high, low[rows]], axis=1)
    return high + np.asarray(LOW_SHARE, high.dtype) * low[rows]


def _rows(high_coords: np.ndarray, low_coords: np.ndarray, low_tile_size: int) -> np.ndarray:
    """The row of the low-magnification tile that holds the upper left corner of each tile, int64 [N]."""
    origin = low_coords.min(axis=0)
    low_cells, remainder = np.divmod(low_coords - origin, low_tile_size)
    if remainder.any():
        x, y = low_coords[np.flatnonzero(remainder.any(axis=1))[0]]
        raise DataError(f"the low-magnification tile at ({x}, {y}) is off the grid of {low_tile_size} level-0 pixels")
    row_of_cell = {cell: row for row, cell in enumerate(map(tuple, low_cells.tolist()))}
    cells = map(tuple, ((high_coords - origin) // low_tile_size).tolist())
    rows = np.array([row_of_cell.get(cell, -1) for cell in cells], np.int64)
    if (rows < 0).any():
        x, y = high_coords[np.flatnonzero(rows < 0)[0]]
        raise DataError(
            f"{np.count_nonzero(rows < 0)} tiles lie in no low-magnification tile, the first at ({x}, {y}); "
            "encode both magnifications from the same tissue mask"
        )
    return rows
