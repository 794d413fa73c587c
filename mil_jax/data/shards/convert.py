"""From a folder of feature files to shards: once, into a cache, for as long as the files stay the same.

The command `python -m data_prep.shard` and the setting `data.features=DIR` both come here. The cache's folder name
holds a digest of the files' names, sizes and times and of the settings; when anything changes, new shards are written
under a new name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from mil_jax.data.buckets import Ladder, fit_ladder
from mil_jax.data.features.regions import as_one_region
from mil_jax.data.shards.index import VERSION
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import ShardWriteReport, write_shards
from mil_jax.errors import BeingWritten, DataError, ShardError, UserError
from mil_jax.files import wait_for
from mil_jax.interop.feature_files import FeatureFile, Layout
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.slide_bag import UNKNOWN, SlideBag

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
    )


def shards_for_features(
    features_dir: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    nonfinite: str = "error",
    encoder_name: str = "",
    num_neighbors: int = 0,
    regions: int = 0,
    progress: Progress | None = None,
) -> Shards:
    """The shards of a folder of feature files, from `cache_dir` where the files are as they were at conversion.

    Raises DataError as `convert`, and ShardError for a cache that is damaged (remove its folder).
    """
    layout = recognise(features_dir)
    settings = [None if dtype is None else np.dtype(dtype).name, nonfinite, encoder_name]
    if num_neighbors:
        settings.append(f"neighbors {num_neighbors}")
    if regions:
        settings.append(f"regions {regions}")
    source = Path(features_dir).absolute()
    folder = Path(cache_dir) / f"{source.name}-{_digest(layout, settings)}"
    while not folder.exists():
        ladder = None if regions else storage_ladder(layout)
        try:
            convert(
                layout,
                folder,
                dtype=dtype,
                nonfinite=nonfinite,
                encoder_name=encoder_name,
                ladder=ladder,
                num_neighbors=num_neighbors,
                regions=regions,
                progress=progress,
            )
        except BeingWritten as other:
            wait_for(other)
        except UserError:
            if not folder.exists():  # where it exists, another process has just written the same
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


def _digest(layout: Layout, settings: list[str | None]) -> str:
    def described(file: FeatureFile) -> list[list[str | int]]:
        statuses = [(path, path.stat()) for path in (file.path, *file.beside)]
        return [[str(path.absolute()), status.st_size, status.st_mtime_ns] for path, status in statuses]

    content = [VERSION, settings, layout.excluded, [described(file) for file in layout.files]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
