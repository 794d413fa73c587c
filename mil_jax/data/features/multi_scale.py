"""Two folders of features of the same slides, at a high and at a low magnification, as one: DSMIL's multi-scale features.

Each tile's features stand beside those of the larger tile around it: by the list of parents in its file, where `data_prep.tile` was asked
for both scales, else by coordinates.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from mil_jax.errors import DataError
from mil_jax.interop.feature_files import FeatureFile, Layout, counted, read_column
from mil_jax.interop.slide_bag import UNKNOWN, SlideBag

PARENT = "parent"


def joined(high: Layout, low: Layout) -> Layout:
    """A layout whose slides have the features [high | low] of both. Slides that one of them lacks are left out, and said.

    Raises DataError where they have no slide in common.
    """
    below = {file.slide_id: file for file in low.files}
    files = tuple(
        dataclasses.replace(file, beside=(*file.beside, below[file.slide_id].path))
        for file in high.files
        if file.slide_id in below
    )
    if not files:
        raise DataError(f"{high.folder} and {low.folder}: have no slide in common, so there is nothing to join")
    ids = {file.slide_id for file in files}
    missing = [
        (file.slide_id, "at one magnification only") for file in (*high.files, *low.files) if file.slide_id not in ids
    ]
    own = {file.slide_id: file for file in high.files}

    def read(file: FeatureFile) -> SlideBag:
        return _joined(high.read(own[file.slide_id]), low.read(below[file.slide_id]), file.path)

    sentence = f"{high.sentence}; joined with {low.sentence}"
    if missing:
        sentence += f"; {counted(len(missing), 'slide')} at one magnification only, left out"
    return Layout(
        f"{high.name}, two magnifications",
        high.folder,
        sentence,
        files,
        read,
        (*high.excluded, *low.excluded, *missing),
    )


def _joined(high: SlideBag, low: SlideBag, path: Path) -> SlideBag:
    where = f"{path} (slide {high.slide_id})"
    if not len(high.features):
        return high
    if high.features.ndim != 2 or low.features.ndim != 2:
        raise DataError(f"{where}: only features [tiles, D] can be joined")
    parent, size = read_column(path, PARENT), low.provenance.tile_size_level0
    places = [np.zeros((0, 2), np.int32) if bag.coords is None else bag.coords for bag in (high, low)]
    if parent is None and (high.coords is None or low.coords is None or math.isnan(size)):
        raise DataError(
            f"{where}: has no list of parents, and to find them by place both magnifications need coordinates and the size of their tiles: "
            "tile and encode both scales with data_prep"
        )
    try:
        low_size = 0 if parent is not None else round(size)
        features = join_scales(high.features, places[0], low.features, places[1], low_size, parent=parent)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    names = [bag.provenance.encoder for bag in (high, low)]
    encoder = UNKNOWN if UNKNOWN in names else "+".join(names)
    return dataclasses.replace(
        high, features=features, provenance=dataclasses.replace(high.provenance, encoder=encoder)
    )


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
