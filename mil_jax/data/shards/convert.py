"""From a folder of feature files to shards: once, into a cache, for as long as the files stay the same.

The command `python -m data_prep.shard` and the setting `data.features=DIR` both come here. The cache's folder name
holds a digest of the settings and of the files: names, sizes, times, and a sample of what they hold (80 KiB of each). When any of
these changes, new shards are written under a new name. A file whose status changed after the conversion is read whole, once, and compared
with its checksum then: tools that keep times (`cp -p`, `rsync -t`) do not hide that they wrote other features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike

from mil_jax.data.buckets import Ladder, fit_ladder
from mil_jax.data.features.regions import as_one_region
from mil_jax.data.shards.index import VERSION
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import ShardWriteReport, write_shards
from mil_jax.errors import BeingWritten, DataError, ShardError, UserError
from mil_jax.files import wait_for, write_text
from mil_jax.interop.feature_files import FeatureFile, Layout
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.slide_bag import UNKNOWN, SlideBag

SOURCES = "sources.json"  # checksums of the feature files, in a cache
_SAMPLES, _BLOCK = 5, 1 << 14
_READERS = 8  # a network file system answers each in milliseconds
_TOLERANCE = 2_000_000_000  # nanoseconds between the clocks of two file systems

Progress = Callable[[int, int, str], None]  # slides done, slides in all, the slide being worked on


def convert(
    layout: Layout,
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    nonfinite: str = "error",
    encoder_name: str = "",
    ladder: Ladder | None = None,
    overwrite: bool = False,
    num_neighbors: int = 0,
    regions: int = 0,
    add_to: Shards | None = None,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> ShardWriteReport:
    """Writes the shards of a recognised folder, or behind those of `add_to` in the same folder.

    encoder_name: what to record where the files do not name their encoder. num_neighbors: nearest tiles to store of each tile, 0 = none.
    regions: tiles a side of the regions to store, 0 = none.

    Raises DataError for unusable features and for files that name another encoder than `encoder_name`; UserError as
    `write_shards`.
    """
    return write_shards(
        _slides(layout, encoder_name, regions, progress),
        folder,
        dtype=dtype,
        nonfinite=nonfinite,
        ladder=ladder,
        overwrite=overwrite,
        excluded=layout.excluded,
        notes=[layout.sentence],
        num_neighbors=num_neighbors,
        regions=regions,
        add_to=add_to,
        finish=finish,
    )


def shards_for_features(
    features_dir: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str],
    *,
    recursive: bool = False,
    dtype: DTypeLike | None = None,
    nonfinite: str = "error",
    encoder_name: str = "",
    num_neighbors: int = 0,
    regions: int = 0,
    progress: Progress | None = None,
) -> Shards:
    """The shards of a folder of feature files (with `recursive` of its subfolders, too), from `cache_dir` where the files are as they were
    at conversion.

    Raises DataError as `convert`, and ShardError for a cache that is damaged (remove its folder).
    """
    layout = recognise(features_dir, recursive)
    settings = [None if dtype is None else np.dtype(dtype).name, nonfinite, encoder_name]
    if num_neighbors:
        settings.append(f"neighbors {num_neighbors}")
    if regions:
        settings.append(f"regions {regions}")
    source = Path(features_dir).absolute()
    folder = Path(cache_dir) / f"{source.name}-{_digest(layout, settings)}"
    checksums: dict[str, int] = {}

    def read(file: FeatureFile) -> SlideBag:
        checksums.update({str(path): _checksum(path) for path in _paths(file)})
        return layout.read(file)

    while not _is_current(layout, folder):
        begun = time.time_ns()
        ladder = None if regions else storage_ladder(layout)
        try:
            convert(
                dataclasses.replace(layout, read=read),
                folder,
                dtype=dtype,
                nonfinite=nonfinite,
                encoder_name=encoder_name,
                ladder=ladder,
                overwrite=True,
                num_neighbors=num_neighbors,
                regions=regions,
                progress=progress,
                finish=functools.partial(_write_sources, checksums, begun),
            )
            break
        except BeingWritten as other:
            wait_for(other)
        except UserError:
            if not _is_current(layout, folder):  # else another process has just written the same
                raise
    try:
        return Shards.open(folder)
    except ShardError as error:
        raise ShardError(f"{error}; this is a cache: remove {folder} and it is recreated") from error


def storage_ladder(layout: Layout) -> Ladder | None:
    """Lengths fitted to the sizes of a folder's slides; None where all are empty."""
    sizes = [size for size in layout.sizes() if size]
    return fit_ladder(sizes) if sizes else None


def _slides(layout: Layout, encoder_name: str, regions: int, progress: Progress | None) -> Iterator[SlideBag]:
    for number, (file, slide) in enumerate(zip(layout.files, layout.slides())):
        if progress is not None:
            progress(number, len(layout.files), file.slide_id)
        slide = _with_encoder(slide, encoder_name)
        yield as_one_region(slide, regions) if regions else slide
    if progress is not None:
        progress(len(layout.files), len(layout.files), "")


def _with_encoder(slide: SlideBag, encoder_name: str) -> SlideBag:
    said = slide.provenance.encoder
    if not encoder_name or said == encoder_name:
        return slide
    if said != UNKNOWN:
        raise DataError(
            f"{slide.source} (slide {slide.slide_id}): its encoder is {said}, not {encoder_name}; "
            "leave encoder_name out, or name the right folder"
        )
    return dataclasses.replace(slide, provenance=dataclasses.replace(slide.provenance, encoder=encoder_name))


def _paths(file: FeatureFile) -> tuple[Path, ...]:
    return file.path, *file.beside


def _digest(layout: Layout, settings: list[str | None]) -> str:
    def described(path: Path) -> list[str | int]:
        status = path.stat()
        return [str(path.absolute()), status.st_size, status.st_mtime_ns, _sample(path, status.st_size)]

    paths = [path for file in layout.files for path in _paths(file)]
    with ThreadPoolExecutor(_READERS) as readers:
        content = [VERSION, settings, layout.excluded, list(readers.map(described, paths))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _sample(path: Path, size: int) -> int:
    """Checksum of blocks from the beginning of a file to its end; of a small file of all of it."""
    checksum = google_crc32c.Checksum()
    with path.open("rb", buffering=0) as file:
        for number in range(_SAMPLES):
            file.seek(max(0, (size - _BLOCK) * number // (_SAMPLES - 1)))
            checksum.update(file.read(_BLOCK))
    return int.from_bytes(checksum.digest(), "big")


def _checksum(path: Path) -> int:
    checksum = google_crc32c.Checksum()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")


def _is_current(layout: Layout, folder: Path) -> bool:
    """Whether the cache has shards of these files with what they hold now; those that changed since are read."""
    if not folder.exists():
        return False
    path, begun = folder / SOURCES, time.time_ns()
    try:
        known, written = dict(json.loads(path.read_text())), path.stat().st_mtime_ns
    except (OSError, ValueError, TypeError):
        return False
    files = [path for file in layout.files for path in _paths(file)]
    changed = [file for file in files if file.stat().st_ctime_ns > written - _TOLERANCE]
    now = {str(file): _checksum(file) for file in changed}
    if any(known.get(file, checksum) != checksum for file, checksum in now.items()):
        return False
    if changed:
        with suppress(UserError):  # a cache that may only be read
            _write_sources(known | now, begun, folder)
    return True


def _write_sources(checksums: dict[str, int], begun: int, folder: Path) -> None:
    """Dated back to when the files began to be read: what changes while others are read is noticed."""
    write_text(folder / SOURCES, json.dumps(checksums))
    os.utime(folder / SOURCES, ns=(begun, begun))
