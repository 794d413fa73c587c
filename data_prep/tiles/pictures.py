"""Pictures to check a slide by eye: its tissue and tiles on the overview, and the tiles that a filter dropped."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_prep.slides.segmentation import Tissue
from data_prep.tiles.grid import Tiling
from mil_jax.files import atomic_write

_LONGEST_SIDE = 1600
_TISSUE, _HOLE, _TILE, _DROPPED = (0, 160, 0), (0, 0, 220), (40, 40, 40), (230, 60, 0)
_MONTAGE_COLUMNS, _MONTAGE_ROWS, _THUMBNAIL = 8, 6, 112


def write_overview(path: Path, tissue: Tissue, tiling: Tiling, kept: np.ndarray, dropped: np.ndarray) -> None:
    """The overview with the outline of the tissue (green), of its holes (blue), the tiles (grey), and those that a quality
    filter dropped (orange). kept, dropped: corners [n, 2] in level-0 pixels.
    """
    height, width = tissue.mask.shape
    factor = _LONGEST_SIDE / max(height, width)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = cv2.resize(tissue.picture, size, interpolation=how)
    per_pixel = factor / tissue.downsample  # pixels of the picture per level-0 pixel
    tiles = picture.copy()
    for corners, colour, thickness in ((kept, _TILE, 1), (dropped, _DROPPED, 2)):
        for x, y in corners:
            first = (round(x * per_pixel), round(y * per_pixel))
            last = (round((x + tiling.edge) * per_pixel), round((y + tiling.edge) * per_pixel))
            cv2.rectangle(tiles, first, last, colour, thickness)
    picture = cv2.addWeighted(tiles, 0.6, picture, 0.4, 0)
    for outline, holes in tissue.contours:
        for contours, colour in (([outline], _TISSUE), (holes, _HOLE)):
            scaled = [np.rint((contour + 0.5) * factor).astype(np.int32) for contour in contours]
            cv2.polylines(picture, scaled, True, colour, 2, cv2.LINE_AA)
    write_jpeg(path, picture)


MOST_IN_MONTAGE = _MONTAGE_COLUMNS * _MONTAGE_ROWS


def write_montage(path: Path, tiles: list[np.ndarray], words: list[str]) -> None:
    """Thumbnails of tiles [t, t, 3] with a word below each."""
    rows = -(-len(tiles) // _MONTAGE_COLUMNS)
    height, width = _THUMBNAIL + 18, _THUMBNAIL + 4
    montage = np.full((rows * height, _MONTAGE_COLUMNS * width, 3), 255, np.uint8)
    for place, (tile, word) in enumerate(zip(tiles, words, strict=True)):
        y, x = place // _MONTAGE_COLUMNS * height, place % _MONTAGE_COLUMNS * width
        small = cv2.resize(tile, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
        montage[y : y + _THUMBNAIL, x : x + _THUMBNAIL] = small
        below = (x + 2, y + _THUMBNAIL + 13)
        cv2.putText(montage, word, below, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    write_jpeg(path, montage)


def write_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [h, w, 3] whole."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
