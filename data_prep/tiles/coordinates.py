"""The coordinate file of a slide, `WORK/coords/SLIDE.h5`, which the readers of CLAM and TRIDENT accept, too.

Dataset `coords` [n, 2] int64: upper left corners (x, y) in level-0 pixels, with the attributes of both and our own; `tissue` [n]
float32, the share of each tile that is tissue; `parent` [n] int32 where a coarser scale was asked for, the row of the tile around
it in that scale's file; `quality/NAME` [n] and `labels/NAME` [n] where these were asked for.

CLAM reads `patch_size` pixels of level `patch_level` and cannot resample, so its two attributes are left out of files whose scale is
none of the levels': its reader then stops instead of showing another scale.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.tiles.grid import Tiling
from mil_jax.errors import DataError
from mil_jax.files import atomic_write
from mil_jax.interop.array_files import open_arrays

COORDS = "coords"
_MOST_TILE = 1 << 15  # pixels of an edge: 3 GiB of colours


@dataclass(frozen=True)
class Coordinates:
    """Tiles of one slide at one scale.

    coords: [n, 2] int64. tissue: [n] float32. mpp_level0, magnification_level0: of the slide, NaN = unknown. dimensions: (w, h) of
    level 0. size, mtime_ns: of the slide's file when it was tiled. parent: [n] int32 or None. quality, labels: columns [n] float32.
    """

    slide_id: str
    tiling: Tiling
    coords: np.ndarray
    tissue: np.ndarray
    mpp_level0: float
    magnification_level0: float
    dimensions: tuple[int, int]
    level_dimensions: tuple[int, int]
    size: int
    mtime_ns: int
    overlap: int = 0
    parent: np.ndarray | None = None
    quality: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)


def coords_folder(work: str | os.PathLike[str], scale: int = 0) -> Path:
    """Where coordinate files lie; scale: 0 for the finest (or only) one, 1 for the next coarser, and so on."""
    return Path(work) / (COORDS if scale == 0 else f"{COORDS}_{scale}")


def write_coordinates(path: Path, made: Coordinates) -> None:
    """Writes a coordinate file whole, always the same bytes for the same tiles."""
    content = io.BytesIO()  # HDF5 does not say that a disk is full in a way that can be told
    with h5py.File(content, "w") as file:
        dataset = file.create_dataset(COORDS, data=made.coords.astype(np.int64).reshape(-1, 2))
        dataset.attrs.update(_attributes(made))
        file.create_dataset("tissue", data=made.tissue.astype(np.float32))
        if made.parent is not None:
            file.create_dataset("parent", data=made.parent.astype(np.int32))
        for group, columns in (("quality", made.quality), ("labels", made.labels)):
            for name, values in columns.items():
                file.create_dataset(f"{group}/{name.replace('/', '_')}", data=values.astype(np.float32))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _attributes(made: Coordinates) -> dict[str, Any]:
    tiling = made.tiling
    magnification = _nearest_magnification(made)
    attributes: dict[str, Any] = {
        # TRIDENT's
        "patch_size": tiling.tile,
        "patch_size_level0": tiling.edge,
        "level0_magnification": magnification or "None",
        "target_magnification": max(1, round(magnification * tiling.tile / tiling.edge)) if magnification else "None",
        "overlap": made.overlap,
        "level0_width": made.dimensions[0],
        "level0_height": made.dimensions[1],
        "name": made.slide_id,
        "savetodir": COORDS,
        # ours
        "tile_size": tiling.tile,
        "tile_size_level0": tiling.edge,
        "step_level0": tiling.step,
        "read_level": tiling.level,
        "read_downsample": tiling.downsample,
        "mpp": tiling.mpp,
        "mpp_level0": made.mpp_level0,
        "magnification_level0": made.magnification_level0,
        "slide_size": made.size,
        "slide_mtime_ns": made.mtime_ns,
    }
    if not tiling.resampled:
        attributes |= {  # CLAM's
            "patch_level": tiling.level,
            "downsample": (tiling.downsample, tiling.downsample),
            "downsampled_level_dim": made.level_dimensions,
            "level_dim": made.level_dimensions,
            "save_path": COORDS,
        }
    return attributes


def _nearest_magnification(made: Coordinates) -> int:
    """TRIDENT's whole number: of the objective where it is known, else what is usual for the pixels; 0 = unknown."""
    if not math.isnan(made.magnification_level0):
        return round(made.magnification_level0)
    if math.isnan(made.mpp_level0):
        return 0
    return min((80, 60, 40, 20, 10, 5), key=lambda usual: abs(math.log(10 / made.mpp_level0 / usual)))


def read_coordinates(path: str | os.PathLike[str]) -> Coordinates:
    """Reads a coordinate file. Raises DataError where it is damaged, or was not written by `data_prep.tile`."""
    try:
        file = open_arrays(Path(path))
        attributes = file.attributes[COORDS]
        across, down = attributes.get("level_dim", (0, 0))
        tiling = Tiling(
            int(attributes["tile_size"]),
            int(attributes["tile_size_level0"]),
            int(attributes["step_level0"]),
            int(attributes["read_level"]),
            float(attributes["read_downsample"]),
            float(attributes["mpp"]),
        )
        made = Coordinates(
            str(attributes["name"]),
            tiling,
            file.read(COORDS),
            file.read("tissue"),
            float(attributes["mpp_level0"]),
            float(attributes["magnification_level0"]),
            (int(attributes["level0_width"]), int(attributes["level0_height"])),
            (int(across), int(down)),
            int(attributes["slide_size"]),
            int(attributes["slide_mtime_ns"]),
            int(attributes["overlap"]),
            file.get("parent"),
            *(
                {name.partition("/")[2]: file.read(name) for name in file.headers if name.startswith(f"{group}/")}
                for group in ("quality", "labels")
            ),
        )
        _require_sound(made)
    except (OSError, KeyError, ValueError, TypeError, OverflowError, DataError) as error:
        raise DataError(
            f"{path}: not a whole coordinate file of data_prep.tile ({error}); tile this slide again"
        ) from error
    return made


def _require_sound(made: Coordinates) -> None:
    """Raises ValueError for values that no tiling has."""
    tiling, coords = made.tiling, made.coords
    if (
        coords.dtype.kind not in "iu"
        or coords.ndim != 2
        or coords.shape[1] != 2
        or ((coords < 0) | (coords >= 2**31)).any()
    ):
        raise ValueError(f"coords are {coords.dtype} {list(coords.shape)}, not whole numbers [tiles, 2] below 2^31")
    columns = {"tissue": made.tissue, "parent": made.parent, **made.quality, **made.labels}
    for name, column in columns.items():
        if column is not None and column.shape != coords.shape[:1]:
            raise ValueError(f"{name} has the shape {list(column.shape)}, and there are {len(coords)} tiles")
    if not 0 < tiling.tile <= _MOST_TILE or min(tiling.edge, tiling.step) <= 0 or tiling.level < 0:
        raise ValueError(
            f"tiles of {tiling.tile} pixels, {tiling.edge} wide and {tiling.step} apart on level {tiling.level}"
        )
    if not 0 < tiling.downsample < math.inf or tiling.mpp <= 0 or math.isinf(tiling.mpp):  # NaN: not known
        raise ValueError(f"a downsample of {tiling.downsample} and {tiling.mpp} micrometres per pixel")
