"""One slide's instances as they come from a feature file, before they are stored in shards.

Ids are file names without their known extensions (of feature files and of slides); text after any other dot belongs
to the id, because barcodes hold dots (`TCGA-3C-AALI-01Z-00-DX1.A1B2`).
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mil_jax.errors import DataError

UNKNOWN = "unknown"  # an encoder that nothing names
FEATURE_EXTENSIONS = (".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth")
SLIDE_EXTENSIONS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"),
    *(".qptiff", ".isyntax", ".sdpc", ".vsi", ".zarr", ".ome", ".mirax", ".jp2", ".bmp", ".jpg", ".jpeg", ".png"),
)


def slide_id_of(name: str | Path) -> str:
    """File name -> slide id: `a/b.c.svs.h5` -> `b.c`. Letters with accents are composed, however the file system stores them (macOS)."""
    text = unicodedata.normalize("NFC", Path(name).name)
    while True:
        stem, dot, last = text.rpartition(".")
        if not stem or (dot + last).lower() not in FEATURE_EXTENSIONS + SLIDE_EXTENSIONS:
            return text
        text = stem


@dataclass(frozen=True)
class Provenance:
    """Where features come from.

    tile_size_level0: edge of a tile in the unit of the coordinates; NaN = unknown. mpp_level0: micrometres per level-0
    pixel; NaN = unknown. coordinate_unit: "level0_pixels", "um", or "none" where there are no coordinates. encoder: its
    name, or "unknown". tile_order: what the order of the rows is ("source": as in the source file).
    """

    tile_size_level0: float = math.nan
    mpp_level0: float = math.nan
    coordinate_unit: str = "none"
    encoder: str = UNKNOWN
    tile_order: str = "source"


@dataclass(frozen=True)
class SlideBag:
    """All instances of one slide.

    features: [n, *F]. coords: [n, 2] int32, (x, y) of each tile's upper left corner in `provenance.coordinate_unit`,
    or None. source: the file it was read from. source_mtime: that file's modification time in seconds; NaN = unknown.
    part_mask: [n, T] bool, which tiles of each region there are, for features [n, T, D] of regions; None = all.

    Raises DataError where features, coordinates and mask do not belong together, and for a region without tiles.
    """

    slide_id: str
    features: np.ndarray
    coords: np.ndarray | None = None
    provenance: Provenance = field(default_factory=Provenance)
    source: str = ""
    source_mtime: float = math.nan
    part_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        where = f"{self.source or 'slide'} (slide {self.slide_id})"
        if self.features.ndim < 2:
            raise DataError(f"{where}: features must be [instances, ...], but their shape is {self.features.shape}")
        if self.part_mask is not None:
            if self.part_mask.shape != self.features.shape[:2] or self.features.ndim != 3:
                raise DataError(
                    f"{where}: a part_mask of shape {self.part_mask.shape} does not go with features of shape {self.features.shape}; it "
                    "must be [regions, tiles], for features [regions, tiles, D]"
                )
            empty = np.flatnonzero(~self.part_mask.any(axis=1))
            if empty.size:
                raise DataError(
                    f"{where}: region {empty[0]} has no tile, its part_mask is empty; leave such regions out"
                )
        if self.coords is None:
            return
        if self.coords.ndim != 2 or self.coords.shape[1] != 2:
            raise DataError(f"{where}: coordinates must be [instances, 2], but their shape is {self.coords.shape}")
        if len(self.coords) != len(self.features):
            raise DataError(
                f"{where}: {len(self.features)} rows of features but {len(self.coords)} coordinates; "
                "the file was probably cut short: extract this slide again or remove it"
            )
