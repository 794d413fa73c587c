"""Where tiles lie: their edge in level-0 pixels, the pyramid level they are read from, the grid, and which tiles are kept.

The grid covers the whole slide from its upper left corner. All positions are level-0 pixels; `tile` and `overlap` count pixels of
the finished tile. A pyramid level within 1 % of the wanted scale is taken as it is, without resampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_prep.jobs import SlideError
from data_prep.slides.open_slide import SlideScale

NO_SCALE, TOO_COARSE = "no scale", "too coarse"
SAME_SCALE = 0.01


@dataclass(frozen=True)
class Tiling:
    """One scale of tiles on one slide.

    tile: edge of a tile in its own pixels. edge, step: edge and distance of tiles in level-0 pixels. level: the pyramid level that
    is read. downsample: level-0 pixels per pixel of that level. mpp: micrometres per pixel of the tile, NaN = unknown.
    """

    tile: int
    edge: int
    step: int
    level: int
    downsample: float
    mpp: float

    @property
    def resampled(self) -> bool:
        """Whether the level's pixels differ from the tile's."""
        return self.read_size != self.tile

    @property
    def read_size(self) -> int:
        """Edge of a tile in pixels of the level."""
        return round(self.edge / self.downsample)


def by_mpp(downsamples: Sequence[float], scale: SlideScale, mpp: float, tile: int, overlap: int) -> Tiling:
    """Tiles of `mpp` micrometres per pixel. Raises SlideError where the slide's own is not known, or coarser."""
    if math.isnan(scale.mpp):
        raise SlideError(NO_SCALE, f"{scale.why_no_mpp}; name it in a table: --mpp-table")
    return _at(downsamples, scale, mpp / scale.mpp, tile, overlap, f"{mpp:g} um/px", f"{scale.mpp:g} um/px")


def by_magnification(
    downsamples: Sequence[float], scale: SlideScale, magnification: float, tile: int, overlap: int
) -> Tiling:
    """Tiles as seen through an objective. Raises SlideError where the slide's magnification is not known, or lower."""
    if math.isnan(scale.magnification):
        raise SlideError(NO_SCALE, f"{scale.why_no_magnification}; name it in a table: --magnification-table")
    factor = scale.magnification / magnification
    return _at(downsamples, scale, factor, tile, overlap, f"{magnification:g}x", f"{scale.magnification:g}x")


def by_level(downsamples: Sequence[float], scale: SlideScale, level: int, tile: int, step: int) -> Tiling:
    """Tiles of a pyramid level as it is; `step` in its pixels. Raises SlideError where there is no such level."""
    if level >= len(downsamples):
        raise SlideError(TOO_COARSE, f"there is no level {level}; the last one is {len(downsamples) - 1}")
    factor = downsamples[level]
    return Tiling(tile, round(tile * factor), max(1, round(step * factor)), level, factor, scale.mpp * factor)


def _at(
    downsamples: Sequence[float], scale: SlideScale, factor: float, tile: int, overlap: int, wanted: str, finest: str
) -> Tiling:
    """factor: level-0 pixels per pixel of a tile."""
    level = min(range(len(downsamples)), key=lambda number: abs(math.log(downsamples[number] / factor)))
    if abs(downsamples[level] / factor - 1) <= SAME_SCALE:
        factor = downsamples[level]
    elif factor < 1:
        raise SlideError(TOO_COARSE, f"its finest level is {finest}, so tiles of {wanted} would have to be enlarged")
    else:
        level = max(number for number, downsample in enumerate(downsamples) if downsample <= factor)
    edge, step = round(tile * factor), max(1, round((tile - overlap) * factor))
    return Tiling(tile, edge, step, level, downsamples[level], scale.mpp * factor)


def grid(dimensions: tuple[int, int], tiling: Tiling) -> np.ndarray:
    """Upper left corners of all tiles that lie whole on a slide of `dimensions` (w, h), row by row, [n, 2] int64."""
    x, y = (np.arange(0, side - tiling.edge + 1, tiling.step) for side in dimensions)
    return np.stack([np.tile(x, len(y)), np.repeat(y, len(x))], axis=1)


def parents(coords: np.ndarray, tiling: Tiling, coarser: Tiling) -> tuple[np.ndarray, np.ndarray]:
    """The coarser tiles that hold the centres of tiles: (corners [m, 2] row by row, row of each tile's parent [n] int32).

    At the right and lower border a coarser tile may reach over the slide's edge, which is read as white: so each tile has one.
    """
    cells = (coords + tiling.edge // 2) // coarser.step
    corners, parent = np.unique(cells[:, ::-1], axis=0, return_inverse=True)
    return corners[:, ::-1] * coarser.step, parent.reshape(-1).astype(np.int32)


class Shares:
    """The share of a rectangle that a mask covers, exactly, from the mask's running sums.

    mask: [h, w] bool, in pixels of `downsample` level-0 pixels.
    """

    def __init__(self, mask: np.ndarray, downsample: float) -> None:
        self.sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
        self.sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
        self.downsample = downsample

    def of(self, coords: np.ndarray, edge: int) -> np.ndarray:
        """Share of each square of `edge` level-0 pixels at the corners coords [n, 2], float64 [n]."""
        left, top = (coords / self.downsample).T
        right, bottom = ((coords + edge) / self.downsample).T
        area = (edge / self.downsample) ** 2
        inside = self._sum(right, bottom) - self._sum(left, bottom) - self._sum(right, top) + self._sum(left, top)
        return inside / area

    def _sum(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Of the mask left of x and above y: linear between the pixels' borders in both."""
        x, y = np.clip(x, 0, self.sums.shape[1] - 1), np.clip(y, 0, self.sums.shape[0] - 1)
        column = np.minimum(x.astype(int), self.sums.shape[1] - 2)
        row = np.minimum(y.astype(int), self.sums.shape[0] - 2)
        right, down = x - column, y - row
        upper = self.sums[row, column] * (1 - right) + self.sums[row, column + 1] * right
        lower = self.sums[row + 1, column] * (1 - right) + self.sums[row + 1, column + 1] * right
        return upper * (1 - down) + lower * down


Pieces = list[tuple[np.ndarray, list[np.ndarray]]]


def contour_grid(pieces: Pieces, downsample: float, tiling: Tiling, contour_fn: str) -> np.ndarray:
    """Corners of the tiles, [n, 2] int64 level-0 pixels. pieces: outlines and holes in pixels of `downsample` level-0 pixels."""
    corners = []
    for piece in pieces:
        outline, *holes = (np.trunc(ring * downsample).astype(np.int32) for ring in (piece[0], *piece[1]))
        left, top, width, height = cv2.boundingRect(outline)
        corners += [
            (x, y)
            for x in range(left, left + width, tiling.step)
            for y in range(top, top + height, tiling.step)
            if _is_kept(outline, holes, x, y, tiling.edge, contour_fn)
        ]
    return np.array(corners, np.int64).reshape(-1, 2)


def _is_kept(outline: np.ndarray, holes: list[np.ndarray], x: int, y: int, edge: int, contour_fn: str) -> bool:
    shift = edge // 4
    centre_x, centre_y = x + edge // 2, y + edge // 2
    around = [(centre_x + across, centre_y + down) for across in (-shift, shift) for down in (-shift, shift)]
    points = {"basic": [(x, y)], "center": [(centre_x, centre_y)]}.get(contour_fn, around)
    inside = (cv2.pointPolygonTest(outline, (float(a), float(b)), False) >= 0 for a, b in points)
    if not (all(inside) if contour_fn == "four_pt_hard" else any(inside)):
        return False
    centre = (x + edge / 2, y + edge / 2)
    return not any(cv2.pointPolygonTest(hole, centre, False) > 0 for hole in holes)
