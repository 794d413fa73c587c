"""Reading HDF5 files in a process of its own, which a damaged file may crash or keep busy without harm (`hdf5_process.py`).

The process is started with the first file (0.2 s) and then asked about one after another; arrays come back through shared memory.
"""

from __future__ import annotations

import atexit
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.errors import DataError

_MODULE = "mil_jax.interop.hdf5_process"


@dataclass(frozen=True)
class Description:
    """shapes, dtypes: of the arrays by their path in the file (`20x/features`); the type is None where NumPy has none for it (text).
    attributes: of each array, and of the file ("").
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype | None]
    attributes: dict[str, dict[str, Any]]


def describe(path: Path) -> Description:
    """What a file holds, without reading arrays. Raises DataError for a file that is damaged, or points to others."""
    arrays, attributes = _ask(path, None, 0, -1)
    return Description(
        {name: shape for name, (shape, _) in arrays.items()},
        {name: np.dtype(dtype) if dtype else None for name, (_, dtype) in arrays.items()},
        attributes,
    )


def read(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of the shape and type that the file claims. Raises DataError where it holds less, or points elsewhere."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if not num_bytes:
        return np.empty(shape, dtype)
    descriptor = _memory_file()
    try:
        os.ftruncate(descriptor, num_bytes)
        _ask(path, name, num_bytes, descriptor)
        return np.frombuffer(mmap.mmap(descriptor, num_bytes), dtype).reshape(shape)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: {name} of shape {shape} does not fit into memory; is the file damaged?") from error
    finally:
        os.close(descriptor)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hdf5")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


class _Process:
    """The other process, as long as it lives."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        home = str(Path(__file__).parents[2])  # of this package, wherever it was imported from
        paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the command
        )
        theirs.close()

    def end(self) -> int:
        """Ends it; returns its exit code."""
        self.connection.close()
        return self.process.wait()


_lock = threading.Lock()
_running: list[_Process] = []


def _ask(path: Path, name: str | None, num_bytes: int, memory: int) -> Any:
    with _lock:
        if not _running:
            _running.append(_Process())
        process = _running[0]
        connection: Connection = process.connection
        try:
            connection.send((os.fspath(path), name, num_bytes))
            if name is not None:
                reduction.send_handle(connection, memory, process.process.pid)
            answer, wrong = connection.recv()
        except (EOFError, OSError):
            _running.clear()
            ended = process.end()
            endless = -ended in (signal.SIGXCPU, signal.SIGKILL)
            wrong = "reading it does not end" if endless else "reading it crashes the HDF5 library"
    if wrong:
        raise DataError(f"{path}: cannot be read as HDF5 ({wrong}); extract this slide again or remove it")
    return answer


@atexit.register
def _end() -> None:
    while _running:
        _running.pop().end()


def _forget() -> None:
    """In a forked process: the other one is its parent's."""
    global _lock
    _lock = threading.Lock()
    for process in _running:
        process.connection.close()
    _running.clear()


os.register_at_fork(after_in_child=_forget)
