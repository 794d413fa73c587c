"""Locks on folders that end with the process that holds them, killed or not: flock(2) on the folder itself, so nothing is left behind.

They hold between processes and containers that share a file system, and on NFS where its server locks folders. Where a file system
cannot lock, everything goes on without: two commands then must not write to one place at a time, and what a killed one left stays.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

UNSUPPORTED = -1
_POLL_SECONDS = 0.02


def lock(folder: Path, *, shared: bool = False, wait: float = 0.0) -> int | None:
    """Locks an existing folder; returns what `release` takes, UNSUPPORTED where it cannot be locked, None where it is locked already.

    wait: seconds to wait for the lock. A folder that was replaced or removed meanwhile counts as locked.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError:
        return UNSUPPORTED
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                continue
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return UNSUPPORTED
        if is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)
        return None


def release(lock: int | None) -> None:
    """Gives a lock back."""
    if lock is not None and lock != UNSUPPORTED:
        os.close(lock)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to what was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
