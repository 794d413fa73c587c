"""Two folders of features of the same slides, at a high and at a low magnification, as one: DSMIL's multi-scale features.

Each tile's features stand beside those of the larger tile around it: by the list of parents in its file, where `data_prep.tile` was asked
for both scales, else by coordinates.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from mil_jax.data.scales import join_scales
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
