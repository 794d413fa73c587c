"""TRIDENT's feature folders: `<job>/20x_256px_0px_overlap/features_<encoder>/<slide>.h5` (mahmoodlab/TRIDENT).

The coordinates' attributes hold `patch_size_level0` (older files: patch_size, level0_magnification,
target_magnification); missing values are the text 'None'. A slide without tissue has an empty array; a `.lock` file
marks a slide that is still being written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.errors import DataError
from mil_jax.interop.feature_files import (
    FeatureFile,
    Layout,
    counted,
    feature_files,
    number,
    probe_h5,
    read_coords,
    read_file,
    slide_files,
    whole_coords,
)
from mil_jax.interop.slide_bag import UNKNOWN, Provenance, SlideBag, slide_id_of

PREFIXES = ("features_", "slide_features_")
_OURS = "data_prep.encode"  # writes the same, with more attributes
_UM_TIMES_MAGNIFICATION = 10.0  # of a pixel, as scanners are named: 0.25 um at 40x


def find(folder: Path) -> Layout | None:
    """The layout of a features folder or of the job folder above it; None where it is not TRIDENT's.

    Raises DataError where a job folder holds the features of several encoders or tile sizes.
    """
    home = _features_folder(folder)
    if home is None:
        return None
    locked = {slide_id_of(path.stem) for path in home.glob("*.lock")}
    paths = [path for path in feature_files(home) if slide_id_of(path) not in locked]
    files = slide_files(paths, lambda slide: [home.parent / "patches" / f"{slide}_patches.h5"])
    kind = "slide embedding" if home.name.startswith("slide_features_") else "slide"
    name = _OURS if any(_is_ours(file.path) for file in files[:1]) else "TRIDENT"
    sentence = f"{name}: {counted(len(files), kind)} in {home}"
    if locked:
        sentence += f", {len(locked)} left out because a .lock file says that they are still being written"
    excluded = tuple((slide, "still being written (.lock file)") for slide in sorted(locked))
    return Layout(name, folder, sentence, files, read, excluded)


def read(file: FeatureFile) -> SlideBag:
    """Reads one slide; an empty slide is a bag of no instances."""
    content = read_file(file.path)
    attributes = dict(content.attributes)
    coords = content.coords
    if file.beside and "patch_size_level0" not in attributes:
        stored, more = read_coords(file.beside[0])
        attributes = more | attributes
        if coords is None and len(content.features) != 1:
            coords = stored
    folder_encoder = next(
        (file.path.parent.name.removeprefix(p) for p in PREFIXES if file.path.parent.name.startswith(p)), ""
    )
    return SlideBag(
        file.slide_id,
        content.features,
        None if coords is None else whole_coords(coords, file.path),
        Provenance(
            tile_size_level0(attributes, file.path),
            number(attributes, "mpp_level0", file.path) if "mpp_level0" in attributes else nominal_mpp(attributes),
            coordinate_unit="none" if coords is None else "level0_pixels",
            encoder=str(attributes.get("encoder", folder_encoder)) or UNKNOWN,
        ),
        str(file.path),
        file.path.stat().st_mtime,
        content.part_mask,
    )


def tile_size_level0(attributes: Mapping[str, Any], path: Path) -> float:
    """Edge of a tile in level-0 pixels from the attributes of TRIDENT's coordinates; NaN where they do not say.

    Raises DataError for values that are no numbers, or a magnification of 0.
    """
    if "patch_size_level0" in attributes:
        return number(attributes, "patch_size_level0", path)
    size, source, target = (
        number(attributes, name, path) for name in ("patch_size", "level0_magnification", "target_magnification")
    )
    if target <= 0:
        raise DataError(
            f"{path}: its attribute target_magnification is {target:g}, which no tile has; tile this slide again"
        )
    return size * source // target


def _is_ours(path: Path) -> bool:
    return path.suffix == ".h5" and "slide_mtime_ns" in probe_h5(path)[1]


def nominal_mpp(attributes: Mapping[str, Any]) -> float:
    """Micrometres of a level-0 pixel by the slide's magnification: 0.25 at 40x; NaN where the attributes do not say."""
    try:
        return _UM_TIMES_MAGNIFICATION / float(np.ravel(attributes["level0_magnification"])[0])
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError):  # a missing value is the text 'None'
        return math.nan


def _features_folder(folder: Path) -> Path | None:
    if folder.name.startswith(PREFIXES) and feature_files(folder):
        return folder
    for prefix in PREFIXES:
        found = [
            path
            for pattern in (f"{prefix}*", f"*_overlap/{prefix}*")
            for path in sorted(folder.glob(pattern))
            if path.is_dir() and feature_files(path)
        ]
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise DataError(f"{folder}: holds {len(found)} folders of features ({names}); name the one to use")
        if found:
            return found[0]
    paths = feature_files(folder, (".h5",))
    if paths and folder.name != "h5_files" and "patch_size_level0" in probe_h5(paths[0])[1]:
        return folder
    return None
