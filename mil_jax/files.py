"""Writing without leaving half a file: a temporary name first, then a rename.

A temporary name, `.NAME.TOKEN.tmp`, is made by one process and never again. What a killed process leaves is removed by the first write of
a later process into the same folder; what a running one is writing is left alone. New files have the mode that the umask allows.
"""

from __future__ import annotations

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
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16}-[0-9a-f]{8}|\d+)\.(tmp|old)")
_LONGEST_NAME = 200  # of 255 bytes; the rest is the token's
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h
_tidied: set[Path] = set()  # folders that this process has looked through
_owned: dict[Path, int] = {}  # folders that this process has for itself


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Raises UserError when the disk is full, or the folder may not be written to.
    """
    target = Path(path)
    with _sentences(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target.parent)
        writing = None if target.parent.absolute() in _owned else file_locks.lock(target.parent, shared=True, wait=2.0)
        temporary = _temporary(target)
        try:
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            file_locks.release(writing)


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
    target = target.absolute()
    with _sentences(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        restore(target)
        _check_target(target, marker, overwrite, kind)
        tidy(target.parent)
        temporary, lock = _new_folder(target)
        try:
            _require_first(temporary, target)
            yield temporary
            _check_target(target, marker, overwrite, kind)
            _put_in_place(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            file_locks.release(lock)


def wait_for(being_written: BeingWritten) -> None:
    """Returns when the other process has ended, whether well or not."""
    file_locks.release(file_locks.lock(being_written.temporary, shared=True, wait=float("inf")))


def own(folder: Path) -> bool:
    """Takes an existing folder for this process, until `disown` or its end. Returns False where another process has it."""
    held = _owned.get(folder.absolute())
    if held is not None and (held == file_locks.UNSUPPORTED or file_locks.is_at(held, folder)):
        return True
    disown(folder)
    lock = file_locks.lock(folder, wait=0.2)  # another may look for leftovers
    if lock is None:
        return False
    _owned[folder.absolute()] = lock
    if lock != file_locks.UNSUPPORTED:
        _remove_leftovers(folder)
    return True


def disown(folder: Path) -> None:
    """Gives a folder back that `own` took."""
    file_locks.release(_owned.pop(folder.absolute(), None))


def tidy(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder, when this process first writes there."""
    folder = folder.absolute()
    if folder in _tidied or folder in _owned or not folder.is_dir():
        return
    _tidied.add(folder)
    lock = file_locks.lock(folder)  # not while another process writes there
    if lock is not None and lock != file_locks.UNSUPPORTED:
        _remove_leftovers(folder)
    file_locks.release(lock)


def restore(target: Path) -> None:
    """Puts a folder back that a process was killed while replacing, on a file system that cannot do that in one step."""
    if target.exists() or not target.parent.is_dir():
        return
    asides = [path for path in _leftovers(target.parent, target.name) if path.suffix == ".old"]
    if asides and not any(_is_alive(path) for path in _leftovers(target.parent, target.name) if path.suffix == ".tmp"):
        asides[-1].replace(target)


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
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{target}: the disk is full; free some space and run the command again") from error
        if error.errno in _FORBIDDEN:
            raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def _temporary(target: Path) -> Path:
    # The time comes first: of two processes that begin at once the later one gives way.
    name = target.name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return target.with_name(f".{name}.{time.time_ns():016x}-{secrets.token_hex(4)}.tmp")


def _new_folder(target: Path) -> tuple[Path, int | None]:
    while True:
        temporary = _temporary(target)
        temporary.mkdir()
        lock = file_locks.lock(temporary)
        if lock is not None:
            return temporary, lock
        shutil.rmtree(temporary, ignore_errors=True)  # another process has just taken it for a leftover


def _leftovers(folder: Path, name: str = "") -> list[Path]:
    """The temporary files and folders in a folder, or those of one target, in the order in which they were made."""
    found = {path: match for path in folder.iterdir() if (match := _TEMPORARY.fullmatch(path.name))}
    mine = [path for path, match in found.items() if not name or match["name"] == name[:_LONGEST_NAME]]
    return sorted(mine, key=lambda path: found[path]["token"])


def _is_alive(temporary: Path) -> bool:
    lock = file_locks.lock(temporary)
    file_locks.release(lock)
    return lock is None and temporary.exists()


def _remove_leftovers(folder: Path) -> None:
    """With the folder locked. Folders have a lock of their own, since they take long."""
    for path in _leftovers(folder):
        if path.suffix == ".old" and not (folder / str(_TEMPORARY.fullmatch(path.name)["name"])).exists():  # type: ignore[index]
            continue  # `restore` may need it
        if not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        lock = file_locks.lock(path)
        if lock is not None and lock != file_locks.UNSUPPORTED:
            shutil.rmtree(path, ignore_errors=True)
        file_locks.release(lock)


def _require_first(temporary: Path, target: Path) -> None:
    for other in _leftovers(target.parent, target.name):
        if other == temporary:
            return
        if other.suffix == ".tmp" and _is_alive(other):
            raise BeingWritten(
                f"{target}: is being written by another process; wait for it, or choose another folder", other
            )


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
    target.replace(aside)
    try:
        temporary.replace(target)
    except BaseException:  # a signal, too
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0)
