"""Writing without leaving half a file: a temporary name first, then a rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mil_jax.errors import DataError, UserError

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}  # on Windows


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is renamed to `path`, on failure removed.

    Raises UserError when the disk is full.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{target}: the disk is full; free some space and run the command again") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a whole text file or none."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(target: Path, marker: str, overwrite: bool, kind: str = "shards") -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it takes the target's place, on failure it is removed.

    marker: a file that shows an existing folder to be of the same kind, which `overwrite` may then replace. kind: what it is of.

    Raises UserError where the target exists and may not be replaced, or when the disk is full.
    """
    target = target.absolute()
    _check_target(target, marker, overwrite, kind)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        _check_target(target, marker, overwrite, kind)
        _put_in_place(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{target}: the disk is full; free some space and run the command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(target: Path, marker: str, overwrite: bool, kind: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / marker).exists():
        raise UserError(f"{target}: exists and is not a folder of {kind}, so it is left alone; choose another folder")
    if not overwrite:
        raise UserError(f"{target}: exists; choose another folder, or replace it with --overwrite")


def _put_in_place(temporary: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        temporary.replace(target)
        return
    # A folder that is not empty cannot be replaced in one step: the old one steps aside, and comes back if the next
    # step fails.
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.replace(aside)
    try:
        temporary.replace(target)
    except OSError:
        aside.replace(target)
        raise
    shutil.rmtree(aside)
