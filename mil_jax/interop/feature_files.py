"""Reading one feature file of any known kind: HDF5, NumPy, PyTorch (safe loading only).

The layouts (`clam.py`, `trident.py`, `stamp.py`, `plain.py`) say which files belong together and what their
attributes mean; here is what they share. Arrays may be [N, D], [1, N, D], [N, 1, D], a slide embedding [D] (a bag of one
instance), regions of tiles [R, T, D], R > 1 or with an array `part_mask` [R, T] of the tiles there are, or instance
images [N, H, W, C].
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.errors import DataError
from mil_jax.interop.array_files import H5_EXTENSIONS, UNNAMED, ArrayFile, Header, open_arrays
from mil_jax.interop.slide_bag import FEATURE_EXTENSIONS, SlideBag, slide_id_of

PART_MASK, COORDS = "part_mask", "coords"
FEATURE_KEYS = ("features", "feats", "patch_embeddings", "embeddings")
OTHER_KEYS = frozenset(  # what a file may hold alone that is no features
    (
        *(
            "coords",
            "coordinates",
            "coord",
            "xy",
            "locations",
            "positions",
            "contours",
            "patches",
            "grid",
            "index",
            "indices",
        ),
        *(
            "label",
            "labels",
            "target",
            "targets",
            "y",
            "class",
            "classes",
            "inst_labels",
            "patch_labels",
            "survival",
            "event",
        ),
        *(
            "mask",
            "masks",
            "part_mask",
            "attention",
            "weights",
            "scores",
            "probs",
            "probabilities",
            "logits",
            "predictions",
        ),
        *(
            "slide_id",
            "slide",
            "patient",
            "case_id",
            "bag_id",
            "barcode",
            "barcodes",
            "id",
            "ids",
            "name",
            "names",
            "filename",
        ),
        *("edge_index", "edges", "adj", "adjacency", "mpp", "length", "num_instances"),
    )
)


@dataclass(frozen=True)
class FeatureFile:
    """The feature file of one slide, and the files beside it that say more (tile coordinates)."""

    path: Path
    slide_id: str
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A folder of feature files whose layout was recognised.

    name: whose layout it is. sentence: what was found, for people. excluded: (slide, reason) of files left out.
    """

    name: str
    folder: Path
    sentence: str
    files: tuple[FeatureFile, ...]
    read: Callable[[FeatureFile], SlideBag]
    excluded: tuple[tuple[str, str], ...] = ()

    def slides(self) -> Iterator[SlideBag]:
        """Reads one slide at a time."""
        return map(self.read, self.files)

    def sizes(self) -> list[int]:
        """Instances of each file, without reading the features where the format allows it."""
        return [count_instances(file.path) for file in self.files]


@dataclass(frozen=True)
class FileContent:
    """features [n, *F]; coords [n, 2] int32 or None; attributes of the file and of its arrays, 'None' left out; part_mask
    [n, T] bool of regions or None: what is masked is zero in the features.
    """

    features: np.ndarray
    coords: np.ndarray | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    part_mask: np.ndarray | None = None


def counted(number: int, noun: str) -> str:
    """`1 slide`, `2 slides`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def feature_files(folder: Path, extensions: tuple[str, ...] = FEATURE_EXTENSIONS) -> list[Path]:
    """The feature files lying directly in a folder, by name; hidden files are left out. Raises DataError for a link to nothing."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(extensions) and not path.name.startswith("."):
            if path.is_file():
                found.append(path)
            elif path.is_symlink() and not path.exists():
                raise DataError(
                    f"{path}: a link to {path.readlink()}, which is not there; fetch that file, or remove the link to leave this slide out"
                )
    return found


def read_file(path: Path) -> FileContent:
    """Reads a feature file whole. Raises DataError naming the file when it cannot be read or holds no features."""
    arrays = open_arrays(path)
    key = _feature_key(arrays)
    features = arrays.read(key)
    if features.dtype.kind not in "iuf":
        raise DataError(f"{path}: features must be numbers, not {features.dtype}")
    if not key and _are_coordinates(features):
        raise DataError(_are_no_features(path, "two columns of whole numbers, as coordinates are"))
    if features.dtype.kind == "f" and features.dtype.itemsize > 8:
        features = features.astype(np.float64)
    features = features.astype(features.dtype.newbyteorder("="), copy=False)
    part_mask, coords = arrays.get(PART_MASK), arrays.get(_beside(key, arrays))
    one_vector = features.ndim == 1
    features = features.reshape(_instances_shape(path, features.shape, part_mask is not None))
    if part_mask is not None:
        part_mask = part_mask.astype(bool)
        if part_mask.shape == features.shape[:2]:
            features = np.where(part_mask[..., None], features, np.zeros((), features.dtype))
    if coords is None or one_vector:  # a slide embedding stands for all its tiles: their coordinates are not its own
        return FileContent(features, None, _attributes(arrays, key), part_mask)
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    _require_places(coords, path)
    return FileContent(features, coords, _attributes(arrays, key), part_mask)


def count_instances(path: Path) -> int:
    """Number of instances in a feature file, from its header where the format has one."""
    arrays = open_arrays(path)
    return _instances_shape(path, arrays.headers[_feature_key(arrays)].shape, PART_MASK in arrays.headers)[0]


def whole_coords(coords: np.ndarray, path: Path) -> np.ndarray:
    """Coordinates [n, 2] rounded to int32. Raises DataError for another shape, and values that are not finite or too large."""
    _require_places(coords, path)
    coords = np.rint(coords)
    if coords.size and not np.abs(coords.astype(np.float64)).max() < 2**31:
        raise DataError(f"{path}: coordinates must be finite numbers below 2^31")
    return coords.astype(np.int32)


def _require_places(coords: np.ndarray, path: Path) -> None:
    if coords.dtype.kind not in "iuf" or coords.ndim != 2 or coords.shape[1] != 2:
        raise DataError(
            f"{path}: coordinates must be numbers [instances, 2], x and y of each, not {coords.dtype} {list(coords.shape)}"
        )


def read_coords(path: Path) -> tuple[np.ndarray | None, dict[str, Any]]:
    """`coords` of an HDF5, npz (slideflow: `arr_0`) or npy file, and its attributes."""
    arrays = open_arrays(path)
    name = next((name for name in (COORDS, "arr_0", UNNAMED) if name in arrays.headers), None)
    return (None if name is None else arrays.read(name)), _attributes(arrays, COORDS)


def read_column(path: Path, name: str) -> np.ndarray | None:
    """Another array of an HDF5 file, or None where it has none of that name."""
    return open_arrays(path).get(name) if path.suffix.lower() in H5_EXTENSIONS else None


def probe_h5(path: Path) -> tuple[set[str], dict[str, Any]]:
    """Names of the arrays and all attributes of an HDF5 file."""
    arrays = open_arrays(path)
    return set(arrays.headers), _attributes(arrays, next((key for key in FEATURE_KEYS if key in arrays.headers), ""))


def _instances_shape(path: Path, shape: tuple[int, ...], regions: bool) -> tuple[int, ...]:
    if shape == (0,):
        return (0, 0)
    if len(shape) == 1:
        return (1, *shape)
    if len(shape) == 3 and shape[0] == 1 and not regions:
        return shape[1:]
    if (
        len(shape) > 2 and shape[1] == 1 and not regions
    ):  # what a network leaves of pooled maps: [N, 1, D], [N, 1, 1, D]
        shape = (shape[0], *(size for size in shape[1:] if size != 1))
    elif len(shape) == 4 and shape[2:] == (1, 1):  # [N, D, 1, 1]
        shape = shape[:2]
    if len(shape) == 1 or (len(shape) in (2, 3, 4) and 0 in shape[1:] and shape[0]):
        raise DataError(f"{path}: features have no columns ({shape}); extract this slide again")
    if len(shape) in (2, 3, 4):
        return shape
    raise DataError(
        f"{path}: features must be [instances, D], [1, instances, D], [D], regions [regions, tiles, D] or images "
        f"[instances, H, W, C], not {shape}"
    )


def _feature_key(arrays: ArrayFile) -> str:
    """Which array holds the features. Raises DataError where none does, or several may."""
    path, headers = arrays.path, arrays.headers
    if "bag_index" in headers:
        raise DataError(f"{path}: holds many bags in one file (`bag_index`); write one feature file per bag")
    for key in FEATURE_KEYS:
        if key in headers:
            return key
    deeper = [name for name in headers if set(name.split("/")) & set(FEATURE_KEYS)]
    if len(deeper) == 1:
        return deeper[0]
    if deeper:
        raise DataError(
            f"{path}: holds features of several kinds ({', '.join(deeper[:8])}); write files with one of them"
        )
    named = [
        name for name, one in headers.items() if re.search("feat|embed", name, re.IGNORECASE) and len(one.shape) > 1
    ]
    names = named if len(named) == 1 else sorted(headers)
    if len(names) != 1:
        raise DataError(
            f"{path}: holds none of the arrays {', '.join(FEATURE_KEYS)}, only {', '.join(names[:8]) or 'nothing'}"
        )
    return _alone(names[0], headers[names[0]], path)


def _alone(name: str, header: Header, path: Path) -> str:
    """The name of a single array, where it may be features."""
    if name.split("/")[-1].lower() in OTHER_KEYS:
        raise DataError(_are_no_features(path, f"`{name}`"))
    numbers = header.dtype is not None and header.dtype.kind in "iu"
    if numbers and len(header.shape) == 2 and header.shape[1] in (2, 4) and header.shape[0] != 1:
        raise DataError(_are_no_features(path, f"whole numbers {list(header.shape)}, as coordinates are"))
    return name


def _are_no_features(path: Path, what: str) -> str:
    return f"{path}: holds {what}, and no features; name the folder of features (CLAM's h5_files or pt_files, TRIDENT's features_*)"


def _are_coordinates(features: np.ndarray) -> bool:
    """Whether an array without a name is [n, 2] of pixels: whole, and too large for what an encoder gives."""
    if features.ndim != 2 or features.shape[1] != 2 or len(features) < 2:
        return False
    return bool((features == np.rint(features)).all() and np.abs(features).max() >= 16)


def _beside(key: str, arrays: ArrayFile) -> str:
    """The coordinates of features in a group lie in the group, or where those of all do."""
    inside = f"{key.rpartition('/')[0]}/{COORDS}"
    return inside if inside in arrays.headers else COORDS


def _attributes(arrays: ArrayFile, key: str) -> dict[str, Any]:
    """Attributes of the file, then of its coordinates, then of its features; the string 'None' means there is none."""
    merged: dict[str, Any] = {}
    for name in ("", COORDS, _beside(key, arrays), *FEATURE_KEYS, key):
        merged.update(arrays.attributes.get(name, {}))
    plain = {key: _plain(value) for key, value in merged.items()}
    return {key: value for key, value in plain.items() if not (isinstance(value, str) and value == "None")}


def _plain(value: Any) -> Any:
    """Text as str, the first one of several; numbers as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "SU":
        value = value.ravel()[0] if value.size else "None"
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def number(attributes: Mapping[str, Any], name: str, path: Path) -> float:
    """An attribute as a number; NaN where there is none. Raises DataError for another value."""
    if name not in attributes:
        return math.nan
    try:
        return float(np.ravel(attributes[name])[0])
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path}: its attribute {name} is {attributes[name]!r}, and must be a number") from error


def slide_files(paths: list[Path], beside: Callable[[str], list[Path]]) -> tuple[FeatureFile, ...]:
    """A FeatureFile for each path; `beside(slide_id)` lists where its companions may lie."""
    files = []
    for path in paths:
        slide_id = slide_id_of(path)
        files.append(FeatureFile(path, slide_id, tuple(p for p in beside(slide_id) if p.is_file())))
    return tuple(files)
