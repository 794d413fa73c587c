"""Writing a pyramid as tiled TIFF with JPEG tiles, the kind of file that OpenSlide calls `generic-tiff`.

Little-endian classic TIFF (Adobe, TIFF 6.0): so at most 4 GiB. One directory per level, the smaller ones marked as reduced; every
tile is a JPEG stream of its own; the resolution tag carries the micrometres per pixel.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from mil_jax.files import atomic_write

TILE = 256
_QUALITY = 85
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_NUM_TAGS = 16


def write_pyramid(path: Path, levels: Sequence[np.ndarray], mpp: float) -> None:
    """Writes the levels [h, w, 3] uint8, the largest first, with `mpp` micrometres per pixel of the first."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<I", 0))
        pointer = 4  # where the place of the next directory is written
        for number, picture in enumerate(levels):
            offsets, sizes = [], []
            for tile in _tiles(picture):
                offsets.append(file.tell())
                sizes.append(file.write(tile))
            file.write(b"\0" * (file.tell() % 2))
            place = file.tell()
            factor = levels[0].shape[1] / picture.shape[1]
            file.write(_directory(place, _tags(picture, offsets, sizes, mpp * factor, reduced=number > 0)))
            end = file.tell()
            file.seek(pointer)
            file.write(struct.pack("<I", place))
            file.seek(end)
            pointer = place + 2 + 12 * _NUM_TAGS


def _tiles(picture: np.ndarray) -> list[bytes]:
    """JPEG streams of all tiles, row by row; those at the border are filled with its last pixels."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((0, -height % TILE), (0, -width % TILE), (0, 0)), mode="edge")
    streams = []
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            stream = io.BytesIO()
            tile = Image.fromarray(np.ascontiguousarray(padded[y : y + TILE, x : x + TILE]))
            tile.save(stream, "jpeg", quality=_QUALITY, subsampling="4:2:0")
            streams.append(stream.getvalue())
    return streams


def _tags(
    picture: np.ndarray, offsets: list[int], sizes: list[int], mpp: float, reduced: bool
) -> list[tuple[int, int, list[int]]]:
    """(tag, type, values), by tag."""
    height, width = picture.shape[:2]
    per_centimetre = Fraction(10_000 / mpp).limit_denominator(10_000)
    resolution = [per_centimetre.numerator, per_centimetre.denominator]
    return [
        (254, _LONG, [int(reduced)]),  # NewSubfileType: a reduced image
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [8, 8, 8]),  # BitsPerSample
        (259, _SHORT, [7]),  # Compression: JPEG
        (262, _SHORT, [6]),  # PhotometricInterpretation: YCbCr
        (277, _SHORT, [3]),  # SamplesPerPixel
        (282, _RATIONAL, resolution),
        (283, _RATIONAL, resolution),
        (284, _SHORT, [1]),  # PlanarConfiguration: chunky
        (296, _SHORT, [3]),  # ResolutionUnit: centimetre
        (322, _SHORT, [TILE]),
        (323, _SHORT, [TILE]),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (530, _SHORT, [2, 2]),  # YCbCrSubSampling
    ]


def _directory(place: int, tags: list[tuple[int, int, list[int]]]) -> bytes:
    """The directory at the file's byte `place`; values longer than 4 bytes follow it."""
    entries, values = struct.pack("<H", len(tags)), b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, kind, content in tags:
        packed = struct.pack(f"<{len(content)}{'H' if kind == _SHORT else 'I'}", *content)
        count = len(content) // 2 if kind == _RATIONAL else len(content)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, count, after + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            entries += struct.pack("<HHI", tag, kind, count) + packed.ljust(4, b"\0")
    return entries + struct.pack("<I", 0) + values
