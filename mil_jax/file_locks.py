"""Locks that end with the process that holds them, killed or not: flock(2) on a file of its own, which its last holder removes.

They hold between processes and containers that share a file system, and between hosts where the file system has locks for all of them, as
NFS has (for files, not for folders). Where a file system cannot lock, everything goes on without: two commands then must not write to one
place at a time, and what a killed one left stays.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

UNSUPPORTED = -1
_POLL_SECONDS = 0.02


def lock(path: Path, *, wait: float = 0.0) -> int | None:
    """Locks a file, which is made where there is none; returns what `release` takes, UNSUPPORTED where it cannot be locked, None where
    another has it.

    wait: seconds to wait for the other.
    """
    end = time.monotonic() + wait
    while True:
        made = not path.exists()
        try:
            descriptor = _open(path)
        except OSError:
            return UNSUPPORTED
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= end:
                return None
            time.sleep(_POLL_SECONDS)
            continue
        except OSError:
            if made:
                path.unlink(missing_ok=True)
            os.close(descriptor)
            return UNSUPPORTED
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder has just removed it


def release(lock: int | None, path: Path | None = None) -> None:
    """Gives a lock back, and removes the file at `path` before."""
    if lock is not None and lock != UNSUPPORTED:
        if path is not None:
            path.unlink(missing_ok=True)
        os.close(lock)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)
    except PermissionError:  # another user's, which can be locked all the same
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
