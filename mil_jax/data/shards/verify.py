"""Reading a folder of shards whole: checksums, finite features, masks, neighbours, and that they are what their source files hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mil_jax.data.features.checks import cast, finite_rows, ranges
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import DataError, ShardError
from mil_jax.interop.feature_files import Layout
from mil_jax.interop.slide_bag import SlideBag

Progress = Callable[[int, int, str], None]


def check_shards(shards: Shards, sources: Layout | None = None, progress: Progress | None = None) -> list[str]:
    """A sentence for each thing that is wrong. sources: the feature files, which are read again and compared.

    Shards of regions or of other rows than their source's (left out because they were not finite) are not compared with it.
    """
    files = {file.slide_id: file for file in sources.files} if sources is not None else {}
    found = []
    for i, slide_id in enumerate(shards.slide_ids):
        if progress is not None:
            progress(i, len(shards), slide_id)
        try:
            shards.verify(i)
            features = np.empty((int(shards.num_instances[i]), *shards.feature_shape), shards.dtype)
            shards.read_features(i, features)
            found += [f"slide {slide_id}: {what}" for what in _inside(shards, i, features)]
            if slide_id in files and sources is not None and not shards.num_parts:
                found += [
                    f"slide {slide_id}: {what}" for what in _against(shards, i, features, sources.read(files[slide_id]))
                ]
        except (DataError, ShardError) as error:
            found.append(str(error))
    if progress is not None:
        progress(len(shards), len(shards), "")
    return found


def _inside(shards: Shards, i: int, features: np.ndarray) -> list[str]:
    found = []
    finite = finite_rows(features)
    if not finite.all():
        found.append(f"rows {ranges(np.flatnonzero(~finite))} are not finite")
    if shards.num_neighbors:
        neighbors = shards.read_neighbors(i)
        if neighbors.min() < -1 or neighbors.max() >= len(features):
            found.append("neighbours that are none of its tiles")
    if shards.num_parts and not shards.read_part_mask(i).any(axis=1).all():
        found.append("a region without tiles")
    return found


def _against(shards: Shards, i: int, features: np.ndarray, source: SlideBag) -> list[str]:
    if len(source.features) != len(features):
        dropped = len(finite_rows(source.features)) - int(finite_rows(source.features).sum())
        if dropped and len(source.features) - dropped == len(features):
            return []
        return [
            f"has {len(features)} instances, but {source.source} {len(source.features)}: write it again with --overwrite"
        ]
    wanted = source.features
    if wanted.dtype != features.dtype:
        wanted, _ = cast(wanted, features.dtype, f"slide {source.slide_id}")
    if not np.array_equal(wanted, features):
        return [f"holds other features than {source.source}: write it again with --overwrite"]
    coords = shards.read_coords(i)
    if coords is not None and source.coords is not None and not np.array_equal(coords, source.coords):
        return [f"holds other coordinates than {source.source}: write it again with --overwrite"]
    return []
