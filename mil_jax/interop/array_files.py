"""Arrays by name out of HDF5, npz, npy and PyTorch files: headers, then what is asked for; never code, never more than there is."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.errors import DataError
from mil_jax.interop import hdf5

H5_EXTENSIONS = (".h5", ".hdf5")
TORCH_EXTENSIONS = (".pt", ".pth")
UNNAMED = ""  # the array of a file that holds a single one without a name
_FREE_BYTES, _MOST_EXPANSION = (
    256 << 20,
    100,
)  # what compressed files may grow to in memory, absolutely or by this factor
_MOST_NAMES = 10_000
_MOST_REASON = 200  # letters of another library's message


@dataclass(frozen=True)
class Header:
    """dtype: None where NumPy has none for it."""

    shape: tuple[int, ...]
    dtype: np.dtype | None


@dataclass(frozen=True)
class ArrayFile:
    """headers: of the arrays by name; those in groups and nested dictionaries are joined by `/`. attributes: of each array and of the file
    (""). read: an array by its name; raises DataError.
    """

    path: Path
    headers: Mapping[str, Header]
    read: Callable[[str], np.ndarray]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, name: str) -> np.ndarray | None:
        """The array, or None where there is none of that name."""
        return self.read(name) if name in self.headers else None


def open_arrays(path: Path) -> ArrayFile:
    """Opens a file by its extension. Raises DataError naming the file where it cannot be read."""
    extension = path.suffix.lower()
    if extension in H5_EXTENSIONS:
        return _hdf5(path)
    if extension in TORCH_EXTENSIONS:
        return _torch(path)
    return _npz(path) if extension == ".npz" else _npy(path)


def _hdf5(path: Path) -> ArrayFile:
    found = hdf5.describe(path)
    headers = {name: Header(shape, found.dtypes[name]) for name, shape in found.shapes.items()}

    def read(name: str) -> np.ndarray:
        header = headers[name]
        if header.dtype is None:
            raise DataError(f"{path}: {name} must hold numbers, and neither text nor types that NumPy lacks")
        return hdf5.read(path, name, header.shape, header.dtype)

    return ArrayFile(path, headers, read, found.attributes)


def _npy(path: Path) -> ArrayFile:
    with _readable(path), path.open("rb") as file:
        header = _npy_header(file)
        stored = path.stat().st_size - file.tell()
        if _num_bytes(header) > stored:
            raise ValueError(f"it claims the shape {header.shape} and holds {stored:,} bytes")

    def read(_: str) -> np.ndarray:
        with _readable(path):
            array: np.ndarray = np.load(path, allow_pickle=False)
            return array

    return ArrayFile(path, {UNNAMED: header}, read)


def _npz(path: Path) -> ArrayFile:
    headers, members = {}, {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise ValueError("it is encrypted")
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                header = _npy_header(file)
            if _num_bytes(header) > member.file_size:
                raise ValueError(
                    f"{member.filename} claims the shape {header.shape} and holds {member.file_size:,} bytes"
                )
            _require_bounded(member.file_size, path)
            name = member.filename.removesuffix(".npy")
            headers[name], members[name] = header, member

    def read(name: str) -> np.ndarray:
        with _readable(path), zipfile.ZipFile(path) as archive, archive.open(members[name]) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return array

    return ArrayFile(path, headers, read)


def _npy_header(file: Any) -> Header:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"format version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which could be code")
    if not all(0 <= size < 2**63 for size in shape):
        raise ValueError(f"it claims the shape {shape}")
    return Header(tuple(map(int, shape)), dtype)


def _torch(path: Path) -> ArrayFile:
    numpy_types = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "bBhHiIlLefd")]
    content = load_torch(path, [np._core.multiarray._reconstruct, np._core.multiarray.scalar, *numpy_types])  # type: ignore[attr-defined]
    with _readable(path):
        arrays = _tensors(content, path)
        if not arrays:
            raise DataError(f"{path}: must hold a tensor or a dictionary of tensors, not a {type(content).__name__}")
        headers = {name: _tensor_header(value, path) for name, value in arrays.items()}

    def read(name: str) -> np.ndarray:
        with _readable(path):
            return numpy_of(arrays[name], name)

    return ArrayFile(path, headers, read)


def load_torch(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """What `torch.save` wrote: tensors, plain Python values and objects of the types `allowed`, without running code.

    Raises DataError for anything else, and without PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: reading PyTorch files needs PyTorch: pip install 'mil-jax[torch]'") from error
    try:
        with torch.serialization.safe_globals(list(allowed)):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
            except RuntimeError:  # files of PyTorch before 1.6 cannot be mapped
                return torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL |got <class ')([\w.]+)", str(error))
        what = found[1] if found else "what is no tensor"
        raise DataError(
            f"{path}: cannot be read as a PyTorch file of plain tensors (it holds {what}; objects are not loaded, they could run code)"
        ) from error
    except Exception as error:  # torch raises many types; each means that this file cannot be used
        raise DataError(f"{path}: cannot be read as a PyTorch file of plain tensors ({_reason(error)})") from error


def _can_be_mapped(path: Path) -> bool:
    """Whether all is stored as it is: of what is compressed, PyTorch would map the compressed bytes. Raises DataError for bombs."""
    if not zipfile.is_zipfile(path):
        return True
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _require_bounded(sum(member.file_size for member in members), path)
        return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def numpy_of(value: Any, name: str = UNNAMED) -> np.ndarray:
    """A tensor as an array; types of floats that NumPy lacks become float32, which holds them exactly. Raises ValueError where there
    is none such.
    """
    if isinstance(value, np.ndarray):
        return value
    import torch

    if value.is_nested:
        raise ValueError(f"{name or 'its tensor'} is a nested tensor")
    try:
        wide = value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64)
        array: np.ndarray = (value.float() if wide else value.resolve_conj().resolve_neg()).numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name or 'its tensor'} is {value.dtype}, {value.layout}") from error
    return array


def _tensor_header(value: Any, path: Path) -> Header:
    if isinstance(value, np.ndarray):
        _require_bounded(value.nbytes, path)
        return Header(value.shape, value.dtype)
    if value.is_nested:  # without a shape
        raise ValueError("it holds a nested tensor")
    _require_bounded(_tensor_bytes(value), path)
    kind = np.dtype(np.float32) if value.is_floating_point() else None if value.is_complex() else np.dtype(np.int64)
    return Header(tuple(value.shape), kind)


def _tensor_bytes(value: Any) -> int:
    """As an array: a tensor may repeat few numbers many times. Of sparse ones 0, which never become arrays."""
    return int(value.numel()) * int(value.element_size()) if str(value.layout) == "torch.strided" else 0


def _tensors(content: Any, path: Path) -> dict[str, Any]:
    """Tensors by name out of nested dictionaries, each of which is looked through once; a list of vectors of one length is an array."""
    import torch

    found: dict[str, Any] = {}
    waiting, seen = [(UNNAMED, content)], set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor | np.ndarray):
            found[name] = value.detach() if isinstance(value, torch.Tensor) else value
        elif isinstance(value, dict):
            if id(value) not in seen:
                seen.add(id(value))
                waiting += [(f"{name}/{key}" if name else str(key), inner) for key, inner in value.items()]
        elif isinstance(value, list) and value and all(isinstance(one, torch.Tensor) for one in value):
            if (
                any(one.is_nested or one.ndim != 1 for one in value)
                or len({(one.shape, one.dtype) for one in value}) > 1
            ):
                raise DataError(f"{path}: its list must hold vectors of one length, one for each instance")
            _require_bounded(sum(map(_tensor_bytes, value)), path)
            found[name] = torch.stack(value).detach()
        elif not name or isinstance(value, tuple):
            raise DataError(f"{path}: must hold a tensor or a dictionary of tensors, not a {type(value).__name__}")
        if len(found) + len(waiting) + len(seen) > _MOST_NAMES:
            raise DataError(
                f"{path}: holds more than {_MOST_NAMES:,} tensors and dictionaries; save the features alone"
            )
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever a reader raises for a damaged file into one sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zip, its decompressors, ast and NumPy raise many types
        raise DataError(f"{path}: cannot be read as arrays of numbers ({_reason(error)}); is it whole?") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) <= _MOST_REASON else f"{text[:_MOST_REASON]}..."


def _require_bounded(num_bytes: int, path: Path) -> None:
    stored = path.stat().st_size
    if num_bytes > max(_FREE_BYTES, _MOST_EXPANSION * stored):
        raise DataError(
            f"{path}: its {stored:,} bytes claim to hold {num_bytes:,}, which no features do; extract this slide again or remove it"
        )


def _num_bytes(header: Header) -> int:
    return math.prod(header.shape) * (header.dtype.itemsize if header.dtype is not None else 1)
