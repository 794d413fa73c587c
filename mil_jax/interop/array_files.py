"""Arrays by name out of HDF5, npz, npy and PyTorch files: headers, then what is asked for; never code, never more than there is."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
            raise DataError(f"{path}: {name} must hold numbers, not text or references")
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
    headers = {}
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
            headers[member.filename.removesuffix(".npy")] = header

    def read(name: str) -> np.ndarray:
        with _readable(path), np.load(path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
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
    return Header(tuple(map(int, shape)), dtype)


def _torch(path: Path) -> ArrayFile:
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: reading PyTorch files needs PyTorch: pip install 'mil-jax[torch]'") from error
    numpy_types = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "bBhHiIlLefd")]
    allowed = [np._core.multiarray._reconstruct, np._core.multiarray.scalar, *numpy_types]  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals(allowed):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of PyTorch before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; each means that this file cannot be used
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a PyTorch file of plain tensors ({reason})") from error
    arrays = dict(_tensors(content, UNNAMED, path, torch))
    if not arrays:
        raise DataError(f"{path}: must hold a tensor or a dictionary of tensors, not a {type(content).__name__}")

    def read(name: str) -> np.ndarray:
        value = arrays[name]
        if isinstance(value, np.ndarray):
            return value
        with _readable(path):
            try:
                # float32 holds the narrower types exactly
                wide = value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64)
                array: np.ndarray = (value.float() if wide else value.resolve_conj().resolve_neg()).numpy()
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"{name or 'its tensor'} is {value.dtype}, {value.layout}") from error
            return array

    def header(value: Any) -> Header:
        if isinstance(value, np.ndarray):
            return Header(value.shape, value.dtype)
        _require_bounded(value.numel() * value.element_size() if value.layout == torch.strided else 0, path)
        kind = np.dtype(np.float32) if value.is_floating_point() else None if value.is_complex() else np.dtype(np.int64)
        return Header(tuple(value.shape), kind)

    return ArrayFile(path, {name: header(value) for name, value in arrays.items()}, read)


def _tensors(content: Any, name: str, path: Path, torch: Any) -> Iterator[tuple[str, Any]]:
    """Tensors by name out of nested dictionaries; a list of vectors of one length is an array."""
    if isinstance(content, torch.Tensor | np.ndarray):
        yield name, content.detach() if isinstance(content, torch.Tensor) else content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{name}/{key}" if name else str(key), path, torch)
    elif isinstance(content, list) and content and all(isinstance(one, torch.Tensor) for one in content):
        if len({(one.shape, one.dtype) for one in content}) > 1 or content[0].ndim != 1:
            raise DataError(f"{path}: its list must hold vectors of one length, one for each instance")
        yield name, torch.stack(content).detach()
    elif not name or isinstance(content, tuple):
        raise DataError(f"{path}: must hold a tensor or a dictionary of tensors, not a {type(content).__name__}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        SyntaxError,
        RuntimeError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as arrays of numbers ({reason})") from error
    except (zipfile.BadZipFile, zipfile.zlib.error, NotImplementedError) as error:  # type: ignore[attr-defined]
        raise DataError(f"{path}: cannot be read as arrays of numbers ({error}); is it whole?") from error


def _require_bounded(num_bytes: int, path: Path) -> None:
    stored = path.stat().st_size
    if num_bytes > max(_FREE_BYTES, _MOST_EXPANSION * stored):
        raise DataError(
            f"{path}: its {stored:,} bytes claim to hold {num_bytes:,}, which no features do; extract this slide again or remove it"
        )


def _num_bytes(header: Header) -> int:
    return math.prod(header.shape) * (header.dtype.itemsize if header.dtype is not None else 1)
