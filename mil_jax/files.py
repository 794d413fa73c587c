"""Writing without leaving half a file: a temporary name first, then a rename.

A temporary name, `.NAME.TOKEN.tmp`, is made by one process and never again. Files are locked themselves while they are written, folders
by a file beside them, `.NAME.mil_jax.lock`. What a killed process leaves is removed by the first write of a later process into the same
folder; what a running one is writing is left alone. New files have the mode that the umask allows.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mil_jax import file_locks
from mil_jax.errors import BeingWritten, DataError, UserError

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}  # on Windows
_LOCK = ".mil_jax.lock"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16}-[0-9a-f]{8})\.(tmp|old)")
_LONGEST_NAME = 200  # of 255 bytes; the rest is the token's
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h
_PATIENCE = 0.5  # seconds: another process may only be looking for leftovers
_tidied: set[Path] = set()  # folders that this process has looked through
_owned: dict[Path, int] = {}  # folders that this process has for itself


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Raises UserError when the disk is full, or the folder may not be written to.
    """
    target = Path(path)
    with _sentences(target):
        make_folder(target.parent)
        tidy(target.parent)
        temporary = _temporary(target)
        lock = file_locks.lock(temporary, wait=_PATIENCE)
        try:
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            file_locks.release(lock)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole text file or none."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(target: Path, marker: str, overwrite: bool, kind: str = "shards") -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it takes the target's place, on failure it is removed.

    marker: a file that shows an existing folder to be of the same kind, which `overwrite` may then replace. kind: what it is of.

    Raises UserError where the target exists and may not be replaced, or when the disk is full; BeingWritten while another process
    writes it.
    """
    target = _resolved(target)
    with _sentences(target):
        make_folder(target.parent)
        tidy(target.parent)
        lock = None if target in _owned else file_locks.lock(_lock_of(target), wait=_PATIENCE)
        if lock is None:
            raise BeingWritten(
                f"{target}: is being written by another process; wait for it, or choose another folder",
                _lock_of(target),
            )
        temporary = _temporary(target)
        try:
            _put_back(target)
            _check_target(target, marker, overwrite, kind)
            make_folder(temporary, target)
            yield temporary
            _check_target(target, marker, overwrite, kind)
            _put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            file_locks.release(lock, _lock_of(target))


def wait_for(being_written: BeingWritten) -> None:
    """Returns when the other process has ended, whether well or not."""
    path = being_written.lock
    file_locks.release(file_locks.lock(path, wait=float("inf")), path)


def make_folder(folder: Path, target: Path | None = None) -> None:
    """Makes a folder and those above it. Raises UserError, which names `target` or else the folder, where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise UserError(f"{target or folder}: cannot be created ({error.strerror}); choose another folder") from error


def own(folder: Path) -> bool:
    """Takes a folder, which need not exist, for this process, until `disown` or its end. Returns False where another process has it.

    Raises UserError where the folder that it is in cannot be made.
    """
    if is_own(folder):
        return True
    folder = _resolved(folder)
    make_folder(folder.parent)
    lock = file_locks.lock(_lock_of(folder), wait=_PATIENCE)
    if lock is None:
        return False
    _owned[folder] = lock
    return True


def is_own(folder: Path) -> bool:
    """Whether this process has taken a folder with `own`."""
    return _resolved(folder) in _owned


def disown(folder: Path) -> None:
    """Gives a folder back that `own` took."""
    folder = _resolved(folder)
    file_locks.release(_owned.pop(folder, None), _lock_of(folder))


@atexit.register
def _disown_all() -> None:
    for folder in [*_owned]:
        disown(folder)


def tidy(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder, when this process first writes there."""
    folder = folder.absolute()
    if folder in _tidied or not folder.is_dir():
        return
    _tidied.add(folder)
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and not path.is_dir():
            _remove_unless_locked(path, path)
        elif found and (path.suffix == ".tmp" or (folder / found["name"]).exists()):  # `restore` may need an older one
            _remove_unless_locked(path, folder / f".{found['name']}{_LOCK}")
        elif path.name.startswith(".") and path.name.endswith(_LOCK):
            _remove_unless_locked(path, path)


def restore(target: Path) -> None:
    """Puts a folder back that a process was killed while replacing, on a file system that cannot do that in one step."""
    target = _resolved(target)
    if target.exists() or not _asides(target):
        return
    lock = file_locks.lock(_lock_of(target), wait=_PATIENCE)
    if lock is not None:
        _put_back(target)
    file_locks.release(lock, _lock_of(target))


def id_file(folder: Path, name: str, suffix: str) -> Path:
    """`folder/name+suffix` for the id of a slide or patient. Raises DataError for an id that cannot be a file name, such as `../x`."""
    reserved = name.split(".")[0].upper() in _RESERVED
    strange = any(character in "/\\" or not character.isprintable() for character in name)
    if not name or name.startswith(".") or reserved or strange:
        raise DataError(
            f"{name!r} is the id of a slide and cannot be the name of a file (in {folder}): rename it, without separators, control "
            "characters and a leading dot"
        )
    return folder / f"{name}{suffix}"


@contextmanager
def _sentences(target: Path) -> Iterator[None]:
    target = target.absolute()
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{target}: the disk is full; free some space and run the command again") from error
        here = error.filename is None or target.parent in Path(os.fsdecode(error.filename)).absolute().parents
        if error.errno in _FORBIDDEN and here:
            raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def _resolved(folder: Path) -> Path:
    """Where it is: a link that a user has made stays, and is one place with what it leads to."""
    return folder.resolve() if folder.is_symlink() else folder.absolute()


def _short(target: Path) -> str:
    return target.name.encode()[:_LONGEST_NAME].decode(errors="ignore")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{_short(target)}.{time.time_ns():016x}-{secrets.token_hex(4)}.tmp")


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{_short(folder)}{_LOCK}")


def _asides(target: Path) -> list[Path]:
    """The folders that stood aside to be replaced by `target`, in the order in which they did."""
    if not target.parent.is_dir():
        return []
    found = {path: _TEMPORARY.fullmatch(path.name) for path in target.parent.glob(".*.old")}
    return sorted(path for path, match in found.items() if match and match["name"] == _short(target))


def _put_back(target: Path) -> None:
    """With the target locked."""
    asides = _asides(target)
    if asides and not target.exists():
        asides[-1].replace(target)


def _remove_unless_locked(path: Path, lock_file: Path) -> None:
    lock = file_locks.lock(lock_file)
    if lock is None or lock == file_locks.UNSUPPORTED:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    file_locks.release(lock, lock_file)


def _check_target(target: Path, marker: str, overwrite: bool, kind: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / marker).exists():
        raise UserError(f"{target}: exists and is not a folder of {kind}, so it is left alone; choose another folder")
    if not overwrite:
        raise UserError(f"{target}: exists; choose another folder, or replace it with --overwrite")


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UserError(f"{target}: another process has just written it; choose another folder") from error
        return
    if _exchange(temporary, target):
        return  # the older one now has the temporary name, and is removed by it
    aside = temporary.with_suffix(".old")
    try:
        target.replace(aside)
        temporary.replace(target)
    except BaseException:  # a signal, too
        _put_back(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
