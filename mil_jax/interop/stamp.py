"""STAMP's feature folders: `<features>/<extractor>-<hash>/<slide>.h5` (github.com/KatherLab/STAMP).

A file holds `feats` and `coords` in micrometres. File attributes: `unit` ("um"), `tile_size_um` (before 2.1
`tile_size`), `extractor`, `feat_type` (tile, slide, patient). Historic files have no unit: a step of 224 then means
tiles of 256 um in 224 pixels; any other step is taken as level-0 pixels. Files of other origin with
`patch_embeddings` have no coordinates.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mil_jax.interop.feature_files import (
    FeatureFile,
    Layout,
    counted,
    feature_files,
    number,
    probe_h5,
    read_file,
    slide_files,
    whole_coords,
)
from mil_jax.interop.slide_bag import UNKNOWN, Provenance, SlideBag

_HISTORIC_STEP, _HISTORIC_TILE_UM = 224, 256.0


def find(folder: Path) -> Layout | None:
    """The layout of a folder whose files hold `feats` or name STAMP; None where they do not."""
    paths = feature_files(folder, (".h5",))
    if not paths:
        return None
    arrays, attributes = probe_h5(paths[0])
    if not ({"feats", "patch_embeddings"} & arrays or "stamp_version" in attributes):
        return None
    files = slide_files(paths, lambda _: [])
    sentence = f"STAMP: {counted(len(files), 'slide')} in {folder}"
    if "stamp_version" in attributes:
        sentence += f", written by STAMP {attributes['stamp_version']}"
    return Layout("STAMP", folder, sentence, files, read)


def read(file: FeatureFile) -> SlideBag:
    """Reads one slide; embeddings of slides and patients are bags of one instance."""
    content = read_file(file.path)
    attributes, coords = content.attributes, content.coords
    tile_size, unit = math.nan, "none"
    if coords is not None:
        whole_coords(coords, file.path)  # finite, before steps are taken from them
        stored = "tile_size_um" if "tile_size_um" in attributes else "tile_size"
        if attributes.get("unit") == "um" or "tile_size_um" in attributes:
            tile_size, unit = number(attributes, stored, file.path), "um"
        elif _step(coords) == _HISTORIC_STEP:
            coords = np.asarray(coords, np.float64) * (_HISTORIC_TILE_UM / _HISTORIC_STEP)
            tile_size, unit = _HISTORIC_TILE_UM, "um"
        else:
            unit = "level0_pixels"
        coords = whole_coords(coords, file.path)
    return SlideBag(
        file.slide_id,
        content.features,
        coords,
        Provenance(tile_size, coordinate_unit=unit, encoder=str(attributes.get("extractor", UNKNOWN))),
        str(file.path),
        file.path.stat().st_mtime,
        content.part_mask,
    )


def _step(coords: np.ndarray) -> float:
    """The smallest distance between two columns or rows of tiles, rounded; 0 where there is only one."""
    gaps = [np.diff(np.unique(axis)) for axis in np.asarray(coords, np.float64).T]
    steps = [float(gap.min()) for gap in gaps if gap.size]
    return float(round(min(steps))) if steps else 0.0
