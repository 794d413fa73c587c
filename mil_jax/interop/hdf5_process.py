"""The process in which HDF5 files are opened: a damaged file can crash the library, or keep it in a loop that no signal handler ends.

`hdf5.py` starts it and asks; it answers about one file at a time. What a file points to outside itself is refused here, plugins included.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import sys
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no filter is loaded from a folder

import h5py
import numpy as np

HEADER_SECONDS = 20  # of CPU, to look through a file
BYTES_PER_SECOND = 10_000_000  # of CPU, at least
SPARE_BYTES = 2 << 30  # of memory beside the arrays read
MOST_NAMES, MOST_ATTRIBUTE_VALUES = 10_000, 10_000
MOST_COMPRESSED = 1_100  # times, by deflate


def describe(path: str) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, dict[str, Any]]]:
    """({array: (shape, type, "" where no array of NumPy holds it)}, {array, or "" for the file: attributes})."""
    with h5py.File(path, "r") as file:
        arrays: dict[str, Any] = {}
        attributes = {"": _attributes(file)}

        def add(name: str, dataset: h5py.Dataset) -> None:
            arrays[name] = () if dataset.shape is None else dataset.shape, _type(dataset)
            attributes[name] = _attributes(dataset)

        # Soft links are followed last: only when no group at all links to another file do they stay within this one.
        soft_links, count = [], 0
        waiting, seen = [("", file)], {_address(file)}
        while waiting:
            prefix, group = waiting.pop()
            for name in group:
                count += 1
                if count > MOST_NAMES:
                    raise ValueError(f"it holds more than {MOST_NAMES} arrays and groups")
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise ValueError(f"{prefix}{name} is a link to another file")
                if isinstance(link, h5py.SoftLink):
                    soft_links.append(prefix + name)
                    continue
                found = group[name]
                if isinstance(found, h5py.Dataset):
                    add(prefix + name, found)
                elif isinstance(found, h5py.Group) and _address(found) not in seen:
                    seen.add(_address(found))
                    waiting.append((f"{prefix}{name}/", found))
        for name in soft_links:
            found = file.get(name)
            if isinstance(found, h5py.Dataset):
                add(name, found)
        return arrays, attributes


def _address(group: h5py.Group) -> int:
    return int(h5py.h5o.get_info(group.id).addr)


def _type(dataset: h5py.Dataset) -> str:
    try:
        dtype = dataset.dtype
    except (TypeError, ValueError):  # times, floats of 8 bits
        return ""
    return str(dtype.str) if dtype.kind in "biufV" else ""


def read(path: str, name: str, memory: int) -> None:
    """Reads an array into a memory file."""
    with h5py.File(path, "r") as file:
        dataset = file[name]
        num_bytes, stored = dataset.size * dataset.dtype.itemsize, _stored_bytes(file, dataset, name)
        if num_bytes > stored * (1 if dataset.chunks is None and not dataset.is_virtual else MOST_COMPRESSED):
            raise ValueError(
                f"{name} claims the shape {dataset.shape}, {num_bytes:,} bytes, of which {stored:,} are stored"
            )
        with mmap.mmap(memory, num_bytes) as mapped:
            out = np.ndarray(dataset.shape, dataset.dtype, mapped)
            if out.ndim:
                dataset.read_direct(out)
            else:
                out[()] = dataset[()]
            del out


def _stored_bytes(file: h5py.File, dataset: h5py.Dataset, name: str) -> int:
    """Bytes in the file. Raises ValueError where the array lies elsewhere, or parts of it were never written, which read as zeros."""
    if dataset.external:
        raise ValueError(f"{name} lies in another file")
    if dataset.is_virtual:
        return _sources_bytes(file, dataset, name)
    if dataset.chunks:
        expected = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        written = dataset.id.get_num_chunks()
        if written < expected:
            raise ValueError(
                f"{name} claims the shape {dataset.shape}, and {written} of its {expected} chunks were ever written"
            )
    return int(dataset.id.get_storage_size())


def _sources_bytes(file: h5py.File, dataset: h5py.Dataset, name: str) -> int:
    """Of an array that is put together from others."""
    parts, stored, covered = dataset.virtual_sources(), {}, 0
    for part in parts:
        if part.file_name != ".":
            raise ValueError(f"{name} lies in another file")
        source = file.get(part.dset_name)
        if not isinstance(source, h5py.Dataset) or source.is_virtual:
            raise ValueError(f"{name} is put together from {part.dset_name}, which is no array of this file")
        selected = (
            part.src_space.get_select_bounds()[1] if part.src_space.shape else ()
        )  # (): all of it, which HDF5 checks
        if any(last >= size for last, size in zip(selected, source.shape, strict=bool(selected))):
            raise ValueError(f"{name} is put together from more than {part.dset_name} holds")
        stored[part.dset_name] = _stored_bytes(file, source, part.dset_name)
        covered += part.vspace.get_select_npoints()
    if covered < dataset.size:
        raise ValueError(f"{name} claims the shape {dataset.shape}, and its parts are {covered:,} numbers")
    return sum(stored.values())


def _attributes(holder: Any) -> dict[str, Any]:
    found = {}
    for name in list(holder.attrs)[:MOST_NAMES]:
        try:
            value = holder.attrs[name]
        except (OSError, TypeError, ValueError, KeyError):
            continue  # of a type that NumPy does not know
        if isinstance(value, np.ndarray) and (value.size > MOST_ATTRIBUTE_VALUES or value.dtype.kind not in "biufSU"):
            continue
        if isinstance(value, str | bytes | int | float | np.generic | np.ndarray):
            found[name] = value
    return found


def _limit(num_bytes: int) -> None:
    """Bounds what the next request may take; the system ends a process that takes more CPU."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + HEADER_SECONDS + num_bytes // BYTES_PER_SECOND
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, SPARE_BYTES + 2 * num_bytes)):
        _, hard = resource.getrlimit(limit)  # as the system has set it for all
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def serve(connection: Connection) -> None:
    """Answers (path, array or None, bytes of the array) with (answer, "") or (None, what is wrong), until the other side is gone."""
    while True:
        try:
            path, name, num_bytes = connection.recv()
        except EOFError:
            return
        _limit(num_bytes)
        memory = reduction.recv_handle(connection) if name is not None else -1
        try:
            if name is None:
                connection.send((describe(path), ""))
            else:
                read(path, name, memory)
                connection.send((None, ""))
        except Exception as error:
            connection.send((None, (str(error).splitlines() or [type(error).__name__])[0]))
        finally:
            if memory >= 0:
                os.close(memory)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
