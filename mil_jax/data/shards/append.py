"""Adding slides to a folder of shards: what is there is kept as it is, in place (hard links), and new shards come behind it.

The folder changes as a whole or not at all, as when it is written. What exists is read once, to be verified and for the feature report.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.data.features.checks import SlideChecks
from mil_jax.data.shards.index import ShardIndex, read_index
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import ConfigError, ShardError
from mil_jax.interop.feature_files import FeatureFile


@dataclass(frozen=True)
class Additions:
    """new: files of slides that the shards lack. changed: slides whose file is another than when they were written. gone: slides without
    a file now. The last two stay as they are.
    """

    new: tuple[FeatureFile, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]


def additions(shards: Shards, files: Iterable[FeatureFile]) -> Additions:
    """What a folder of feature files has that the shards have not."""
    times = dict(zip(shards.slide_ids, shards.provenance["source_mtime"]))
    by_id = {file.slide_id: file for file in files}
    changed = (slide for slide in times if slide in by_id and _differs(by_id[slide].path, times[slide]))
    return Additions(
        tuple(file for slide, file in by_id.items() if slide not in times),
        tuple(changed),
        tuple(slide for slide in times if slide not in by_id),
    )


def _differs(path: Path, mtime: float) -> bool:
    return bool(np.isfinite(mtime)) and path.stat().st_mtime != mtime


def keep(shards: Shards, folder: Path, checked: SlideChecks, num_neighbors: int, regions: int) -> ShardIndex:
    """Links shards into `folder` as 0.shard, 1.shard, ..., and has `checked` count their slides; returns their index.

    Raises ConfigError where what is asked for is not what they hold, ShardError for a record that was altered, and where the folder has
    changed since they were opened.
    """
    before, index = shards.folder, read_index(shards.folder)
    if index.fingerprint() != shards.fingerprint:
        raise ShardError(f"{before}: another process has just added to it; run the command again")
    asked = {"neighbors": num_neighbors, "regions": regions}
    held = {"neighbors": index.num_neighbors, "regions": round(index.num_parts**0.5)}
    for name, value in asked.items():
        if value != held[name]:
            raise ConfigError(
                f"{before}: was written with {name}={held[name]}, not {value}; slides are added with the same"
            )
    if checked.dtype is not None and checked.dtype != index.dtype:
        raise ConfigError(f"{before}: holds {index.dtype}, not {checked.dtype}; slides are added with the same type")
    checked.dtype = index.dtype
    for i, slide_id in enumerate(shards.slide_ids):
        shards.verify(i)
        features = np.empty((int(shards.num_instances[i]), *shards.feature_shape), shards.dtype)
        shards.read_features(i, features)
        checked.count(slide_id, str(shards.provenance["source"].iloc[i]), features)
    for number, shard in enumerate(index.shards):
        _link(before / shard.file, folder / f"{number}.shard")
    dropped: Any = index.records.set_index("slide_id")["dropped_rows"]
    checked.dropped |= {str(slide): int(rows) for slide, rows in dropped.items() if rows}
    checked.excluded += [(slide, reason) for slide, reason in index.excluded if slide not in dict(checked.excluded)]
    checked.largest_error = index.largest_relative_error
    return index


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
