"""The process in which HDF5 files are opened: a damaged file can crash the library, or keep it in a loop that no signal handler ends.

`hdf5.py` starts it and asks; it answers about one file at a time. What a file points to outside itself is refused here, plugins included.
"""

from __future__ import annotations

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
MOST_NAMES, MOST_DEPTH, MOST_ATTRIBUTE_VALUES = 10_000, 8, 10_000
MOST_COMPRESSED = 1_100  # times, by deflate


def describe(path: str) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, dict[str, Any]]]:
    """({array: (shape, type, "" where no array of NumPy holds it)}, {array, or "" for the file: attributes})."""
    with h5py.File(path, "r") as file:
        arrays: dict[str, Any] = {}
        attributes = {"": _attributes(file)}
        waiting = [("", file, 0)]
        while waiting:
            prefix, group, depth = waiting.pop()
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                    raise ValueError(f"{prefix}{name} is a link to another file")
                found = group.get(name)
                if isinstance(found, h5py.Group) and depth < MOST_DEPTH:
                    waiting.append((f"{prefix}{name}/", found, depth + 1))
                if isinstance(found, h5py.Dataset):
                    shape = () if found.shape is None else found.shape
                    arrays[f"{prefix}{name}"] = shape, found.dtype.str if found.dtype.kind in "biufV" else ""
                    attributes[f"{prefix}{name}"] = _attributes(found)
                if len(arrays) + len(waiting) > MOST_NAMES:
                    raise ValueError(f"it holds more than {MOST_NAMES} arrays and groups")
        return arrays, attributes


def read(path: str, name: str, memory: int) -> None:
    """Reads an array into a memory file."""
    with h5py.File(path, "r") as file:
        dataset = file[name]
        _require_whole(dataset, name)
        num_bytes = dataset.size * dataset.dtype.itemsize
        with mmap.mmap(memory, num_bytes) as mapped:
            out = np.ndarray(dataset.shape, dataset.dtype, mapped)
            if out.ndim:
                dataset.read_direct(out)
            else:
                out[()] = dataset[()]
            del out


def _require_whole(dataset: h5py.Dataset, name: str) -> None:
    """Raises ValueError where the array lies elsewhere, or claims more than there is."""
    if dataset.external or (dataset.is_virtual and any(one.file_name != "." for one in dataset.virtual_sources())):
        raise ValueError(f"{name} lies in another file")
    num_bytes, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if num_bytes > stored * (MOST_COMPRESSED if dataset.chunks else 1) and not dataset.is_virtual:
        raise ValueError(
            f"{name} claims the shape {dataset.shape}, {num_bytes:,} bytes, of which {stored:,} are stored"
        )


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
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    resource.setrlimit(resource.RLIMIT_AS, (SPARE_BYTES + 2 * num_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


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
