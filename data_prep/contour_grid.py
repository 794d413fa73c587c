"""Tiles as CLAM lays them: a grid per piece of tissue, from the corner of its bounding box, chosen by points (Lu et al. 2021).

A tile stays when points of it lie in the outline, and its centre in no hole: the corner (`basic`), the centre (`center`), any
(`four_pt`) or all (`four_pt_hard`) of the four points a quarter of its edge off the centre. Tiles may reach over the slide's border,
and pieces whose boxes overlap may give overlapping tiles. The order is CLAM's: by piece, then column by column.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_prep.tiling import Tiling

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
