"""Reading one feature file of any known kind: HDF5, NumPy, PyTorch (safe loading only).

The layouts (`clam.py`, `trident.py`, `stamp.py`, `plain.py`) say which files belong together and what their
attributes mean; here is what they share. Arrays may be [N, D], [1, N, D], a slide embedding [D] (a bag of one
instance), regions of tiles [R, T, D], R > 1 or with an array `part_mask` [R, T] of the tiles there are, or instance
images [N, H, W, C].
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mil_jax.errors import DataError
from mil_jax.interop.slide_bag import FEATURE_EXTENSIONS, SlideBag, slide_id_of

H5_EXTENSIONS = (".h5", ".hdf5")
TORCH_EXTENSIONS = (".pt", ".pth")
PART_MASK = "part_mask"
FEATURE_KEYS = ("features", "feats", "patch_embeddings", "embeddings")


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
    """The feature files lying directly in a folder, by name; hidden files are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(extensions) and not path.name.startswith(".") and path.is_file()
    )


def read_file(path: Path) -> FileContent:
    """Reads a feature file whole. Raises DataError naming the file when it cannot be read or holds no features."""
    features, coords, part_mask, attributes = _load(path, whole=True)
    if features.dtype.kind not in "iuf":
        raise DataError(f"{path}: features must be numbers, not {features.dtype}")
    one_vector = features.ndim == 1
    features = np.asarray(features)
    features = features.reshape(_instances_shape(path, features.shape, part_mask is not None))
    if part_mask is not None:
        part_mask = np.asarray(part_mask).astype(bool)
        if part_mask.shape == features.shape[:2]:
            features = np.where(part_mask[..., None], features, np.zeros((), features.dtype))
    if coords is None or one_vector:  # a slide embedding stands for all its tiles: their coordinates are not its own
        return FileContent(features, None, attributes, part_mask)
    coords = np.asarray(coords)
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    return FileContent(features, coords, attributes, part_mask)


def count_instances(path: Path) -> int:
    """Number of instances in a feature file, from its header where the format has one."""
    features, _, part_mask, _ = _load(path, whole=False)
    return _instances_shape(path, features.shape, part_mask is not None)[0]


def whole_coords(coords: np.ndarray, path: Path) -> np.ndarray:
    """Coordinates rounded to int32. Raises DataError for values that are not finite or too large."""
    coords = np.asarray(coords)
    if coords.dtype.kind == "f":
        coords = np.rint(coords)
    if coords.dtype.kind not in "iuf" or (coords.size and not np.abs(coords.astype(np.float64)).max() < 2**31):
        raise DataError(f"{path}: coordinates must be finite numbers below 2^31")
    return coords.astype(np.int32)


def read_coords(path: Path) -> tuple[np.ndarray | None, dict[str, Any]]:
    """`coords` of an HDF5, npz (slideflow: `arr_0`) or npy file, and its attributes."""
    if path.suffix.lower() == ".npy":
        return _read_numpy(path, whole=True), {}
    if path.suffix.lower() == ".npz":
        arrays = _read_numpy(path, whole=True)
        return arrays.get("coords", arrays.get("arr_0")), {}
    with _opened_h5(path) as file:
        return (file["coords"][()] if "coords" in file else None), _attributes(file)


def read_column(path: Path, name: str) -> np.ndarray | None:
    """Another array of an HDF5 file, or None where it has none of that name."""
    if path.suffix.lower() not in H5_EXTENSIONS:
        return None
    with _opened_h5(path) as file:
        return file[name][()] if name in file else None


def probe_h5(path: Path) -> tuple[set[str], dict[str, Any]]:
    """Names of the arrays and all attributes of an HDF5 file."""
    with _opened_h5(path) as file:
        return set(file), _attributes(file)


def _instances_shape(path: Path, shape: tuple[int, ...], regions: bool) -> tuple[int, ...]:
    if shape == (0,):
        return (0, 0)
    if len(shape) == 1:
        return (1, *shape)
    if len(shape) == 3 and shape[0] == 1 and not regions:
        return shape[1:]
    if len(shape) in (2, 3, 4):
        return shape
    raise DataError(
        f"{path}: features must be [instances, D], [1, instances, D], [D], regions [regions, tiles, D] or images "
        f"[instances, H, W, C], not {shape}"
    )


def _load(path: Path, whole: bool) -> tuple[Any, Any, Any, dict[str, Any]]:
    """features, coords, part_mask, attributes; features are not read where `whole` is false and the format has a header."""
    extension = path.suffix.lower()
    if extension in H5_EXTENSIONS:
        with _opened_h5(path) as file:
            key = _feature_key(file, path)
            coords = file["coords"][()] if whole and "coords" in file else None
            part_mask = file[PART_MASK][()] if PART_MASK in file else None
            return (file[key][()] if whole else _Header(file[key].shape)), coords, part_mask, _attributes(file)
    content = _read_torch(path, whole) if extension in TORCH_EXTENSIONS else _read_numpy(path, whole)
    if isinstance(content, dict):
        return content[_feature_key(content, path)], content.get("coords"), content.get(PART_MASK), {}
    return content, None, None, {}


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]


def _feature_key(arrays: Any, path: Path) -> str:
    if "bag_index" in arrays:
        raise DataError(f"{path}: holds many bags in one file (`bag_index`); write one feature file per bag")
    for key in FEATURE_KEYS:
        if key in arrays:
            return key
    names = sorted(arrays)
    if len(names) == 1:
        return names[0]
    raise DataError(f"{path}: holds none of the arrays {', '.join(FEATURE_KEYS)}, only {', '.join(names) or 'nothing'}")


@contextmanager
def _opened_h5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error}); extract this slide again or remove it") from error


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file, then of its coordinates, then of its features; the string 'None' means there is none."""
    merged: dict[str, Any] = dict(file.attrs)
    for key in ("coords", *FEATURE_KEYS):
        if key in file:
            merged.update(file[key].attrs)
    texts = {key: value.decode() if isinstance(value, bytes) else value for key, value in merged.items()}
    return {key: value for key, value in texts.items() if not (isinstance(value, str) and value == "None")}


def _read_numpy(path: Path, whole: bool) -> Any:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode=None if whole else "r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files} if whole else _npz_headers(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as a NumPy file without pickled objects ({error})") from error


def _npz_headers(arrays: Any) -> dict[str, _Header]:
    headers = {}
    for key in arrays.files:
        with arrays.zip.open(key + ".npy" if key + ".npy" in arrays.zip.namelist() else key) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            headers[key] = _Header(read(member)[0])
    return headers


def _read_torch(path: Path, whole: bool) -> Any:
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: reading PyTorch files needs PyTorch: pip install 'mil-jax[torch]'") from error
    numpy_types = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "bBhHiIlLefd")]
    allowed = [np._core.multiarray._reconstruct, np._core.multiarray.scalar, *numpy_types]  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals(allowed):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
            except RuntimeError:  # files of PyTorch before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; each means that this file cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a PyTorch file of plain tensors ({reason})") from error

    def to_numpy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # float32 holds bfloat16 exactly

    if isinstance(content, dict):
        return {key: to_numpy(value) for key, value in content.items()}
    array = to_numpy(content)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: must hold a tensor or a dictionary of tensors, not a {type(content).__name__}")
    return array


def slide_files(paths: list[Path], beside: Callable[[str], list[Path]]) -> tuple[FeatureFile, ...]:
    """A FeatureFile for each path; `beside(slide_id)` lists where its companions may lie."""
    files = []
    for path in paths:
        slide_id = slide_id_of(path)
        files.append(FeatureFile(path, slide_id, tuple(p for p in beside(slide_id) if p.is_file())))
    return tuple(files)
