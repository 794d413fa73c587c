"""Writing shards: TFRecord files of one padded, masked bag per slide, an index, and TensorFlow Datasets' metadata.

One bag is in memory at a time (and a second copy of it while its type is cast or rows are dropped). Features go from
the caller's array to the file without a copy; padding comes from one block of zeros. The folder is written under a
temporary name and renamed when complete. TensorFlow reads it with
`tfds.builder_from_directory(folder).as_dataset(split="slides")`; writing needs no TensorFlow.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike

from mil_jax.data.buckets import Ladder, round_up
from mil_jax.data.features.checks import SlideChecks
from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.data.features.regions import in_regions
from mil_jax.data.shards import append, tfrecord
from mil_jax.data.shards.index import INDEX_FILE, ShardFile, ShardIndex, write_index
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import ConfigError, DataError
from mil_jax.files import atomic_folder
from mil_jax.interop.slide_bag import UNKNOWN, SlideBag

REPORT_FILE = "feature_report.json"

_NAME, _SPLIT = "bags", "slides"


@dataclass(frozen=True)
class ShardWriteReport:
    """What was written and what was not.

    feature_bytes: bytes of real features. padding_waste: share of the stored rows that is padding. excluded: (slide,
    reason). dropped_rows: slide -> number of non-finite rows left out. largest_relative_error: of a cast, None
    without one. features: the feature report's summary. warnings: its warnings and what else should be looked at.
    """

    folder: Path
    num_slides: int
    num_instances: int
    feature_bytes: int
    padding_waste: float
    excluded: tuple[tuple[str, str], ...]
    dropped_rows: dict[str, int]
    largest_relative_error: float | None
    features: dict[str, Any]
    warnings: tuple[str, ...]


def write_shards(
    slides: Iterable[SlideBag],
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    nonfinite: str = "error",
    ladder: Ladder | None = None,
    shard_bytes: int = 2 << 30,
    overwrite: bool = False,
    excluded: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    for_tensorflow: bool = True,
    num_neighbors: int = 0,
    regions: int = 0,
    add_to: Shards | None = None,
    finish: Callable[[Path], None] | None = None,
) -> ShardWriteReport:
    """Writes a folder of shards, whole or not at all.

    dtype: type to store; None = the source's. nonfinite: what happens to rows that are not finite: "error", "drop_rows"
    or "drop_slide". ladder: lengths to pad to; None = the next multiple of 128 (of 8 below 1,024). shard_bytes: a shard
    that has reached this size is closed. excluded: slides left out already. notes: sentences to record in the index.
    for_tensorflow: write TensorFlow Datasets' metadata too, which needs that package; this library reads without.
    num_neighbors: store so many nearest tiles of each tile, for methods on graphs; 0 = none.
    regions: store regions of so many tiles a side as the instances, for HIPT (16); 0 = as they come.
    add_to: the shards in this folder, which stay as they are; `slides` come behind them.
    finish: writes what else belongs into the folder, which is not yet in its place.

    Raises ConfigError for neighbours of regions, or slides to add that would be stored otherwise than those that are there; DataError
    for non-finite rows (every slide and row is named), features of different shape or type, a slide that occurs twice, values that a
    cast would overflow, neighbours or regions asked of a slide without coordinates or with two tiles at one place, a grid that does not
    fit the tiles' size, or nothing to write; ShardError for an altered record among those that are there; UserError for an existing
    folder without `overwrite`, or a full disk. The folder is then left as it was.
    """
    if regions and num_neighbors:
        raise ConfigError("neighbours are those of tiles, and regions take their place: ask for one of them")
    target = Path(folder)
    with atomic_folder(target, INDEX_FILE, overwrite or add_to is not None) as temporary:
        checked = SlideChecks(None if dtype is None else np.dtype(dtype), nonfinite, list(excluded))
        with _RecordWriter(temporary, ladder, shard_bytes, num_neighbors) as writer:
            if add_to is not None:
                writer.go_on_behind(append.keep(add_to, temporary, checked, num_neighbors, regions))
            for slide in slides:
                checked_slide = checked.check(slide)
                if checked_slide is not None:
                    writer.write(in_regions(checked_slide, regions) if regions else checked_slide)
        checked.raise_for_offenders()
        report = _finish(temporary, target, checked, writer, tuple(notes))
        if for_tensorflow:
            _write_metadata(temporary, writer)
        if finish is not None:
            finish(temporary)
        return report


class _RecordWriter:
    """Appends records to shards in a folder."""

    def __init__(self, folder: Path, ladder: Ladder | None, shard_bytes: int, num_neighbors: int) -> None:
        self._folder, self._ladder, self._shard_bytes = folder, ladder, shard_bytes
        self.num_neighbors = num_neighbors
        self._descriptor = -1
        self._zeros = np.zeros(0, np.uint8)
        self.sizes: list[int] = []  # bytes in each shard
        self.counts: list[int] = []  # records in each shard
        self.rows: list[dict[str, Any]] = []
        self.feature_shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)

    @property
    def num_parts(self) -> int:
        """Tiles of a region; 0 where instances are no regions."""
        return self.feature_shape[0] if len(self.feature_shape) == 2 else 0

    def __enter__(self) -> _RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def go_on_behind(self, before: ShardIndex) -> None:
        """Counts shards that are in the folder already; what is written goes to new ones."""
        self.sizes = [shard.num_bytes for shard in before.shards]
        self.counts = [shard.num_records for shard in before.shards]
        self.rows = before.records.to_dict("records")
        self.feature_shape, self.dtype = before.feature_shape, before.dtype

    def write(self, slide: SlideBag) -> None:
        """Appends one slide's record."""
        features, provenance = slide.features, slide.provenance
        self.feature_shape, self.dtype = features.shape[1:], features.dtype
        n = len(features)
        length = self._padded_length(n)
        coords = np.zeros((length, 2), "<i4")
        if slide.coords is not None:
            coords[:n] = slide.coords
        padding = (length - n) * (features.nbytes // n)
        if self._zeros.nbytes < padding:
            self._zeros = np.zeros(padding, np.uint8)
        neighbors = np.full((length, self.num_neighbors), -1, "<i4")
        if self.num_neighbors:
            size = provenance.tile_size_level0
            neighbors[:n] = nearest_neighbors(slide.coords, self.num_neighbors, slide.slide_id, size)
        parts = np.zeros((length, self.num_parts), bool)
        if self.num_parts:
            parts[:n] = True if slide.part_mask is None else slide.part_mask
        optional = {}
        if self.num_neighbors:
            optional["neighbors"] = neighbors
        if self.num_parts:
            optional["part_mask"] = parts
        message = tfrecord.example(
            {
                "slide_id": tfrecord.bytes_feature([slide.slide_id.encode()]),
                "num_instances": tfrecord.int64_feature(n),
                "tile_size_level0": tfrecord.float_feature(provenance.tile_size_level0),
                "mpp_level0": tfrecord.float_feature(provenance.mpp_level0),
                "coordinate_unit": tfrecord.bytes_feature([_unit(slide).encode()]),
                "encoder": tfrecord.bytes_feature([provenance.encoder.encode()]),
                "tile_order": tfrecord.bytes_feature([provenance.tile_order.encode()]),
                "coords": tfrecord.bytes_feature([coords]),
                "mask": tfrecord.bytes_feature([np.arange(length) < n]),
                **{name: tfrecord.bytes_feature([array]) for name, array in optional.items()},
                "features": tfrecord.bytes_feature([features, self._zeros[:padding]]),
            }
        )
        message_bytes = tfrecord.size(message)
        if message_bytes > tfrecord.MAX_MESSAGE_BYTES:
            raise DataError(
                f"slide {slide.slide_id}: {n} instances make a record of {message_bytes / 2**30:.1f} GiB, but "
                "TensorFlow's format ends at 2 GiB; store dtype=float16"
            )
        self._open_shard()
        offset = self.sizes[-1]
        checksum = tfrecord.masked_crc32c(message)
        record = [tfrecord.header(message_bytes), *message, tfrecord.footer(checksum)]
        tfrecord.write_fully(self._descriptor, record)
        self.rows.append(
            {
                "slide_id": slide.slide_id,
                "shard": len(self.sizes) - 1,
                "record": self.counts[-1],
                "offset": offset,
                "message_bytes": message_bytes,
                "features_offset": offset + tfrecord.offset_of(record, features),
                "coords_offset": offset + tfrecord.offset_of(record, coords),
                "length": length,
                "num_instances": n,
                "checksum": checksum,
                "tile_size_level0": provenance.tile_size_level0,
                "mpp_level0": provenance.mpp_level0,
                "coordinate_unit": _unit(slide),
                "encoder": provenance.encoder,
                "tile_order": provenance.tile_order,
                "source": slide.source.encode(errors="replace").decode(),
                "source_mtime": slide.source_mtime,
            }
            | {f"{name}_offset": offset + tfrecord.offset_of(record, array) for name, array in optional.items()}
        )
        self.sizes[-1] += tfrecord.size(record)
        self.counts[-1] += 1

    def name_shards(self) -> list[str]:
        """Gives the shards their final names, which hold the number of shards."""
        names = [f"{_NAME}-{_SPLIT}.tfrecord-{k:05d}-of-{len(self.sizes):05d}" for k in range(len(self.sizes))]
        for number, name in enumerate(names):
            (self._folder / f"{number}.shard").rename(self._folder / name)
        return names

    def _open_shard(self) -> None:
        if self._descriptor >= 0 and self.sizes[-1] < self._shard_bytes:
            return
        self.__exit__()
        path = self._folder / f"{len(self.sizes)}.shard"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.sizes.append(0)
        self.counts.append(0)

    def _padded_length(self, n: int) -> int:
        if self._ladder is not None and n <= self._ladder.lengths[-1]:
            return self._ladder.lengths[int(self._ladder.bucket(n))]
        return int(round_up(n))


def _finish(
    folder: Path, target: Path, checked: SlideChecks, writer: _RecordWriter, notes: tuple[str, ...]
) -> ShardWriteReport:
    """Names the shards and writes report and index."""
    if not writer.rows:
        reasons = ", ".join(f"{slide}: {reason}" for slide, reason in checked.excluded[:5])
        raise DataError(f"no slide to write to {target}" + (f", all were excluded ({reasons})" if reasons else ""))
    names = writer.name_shards()
    summary = checked.report.summary()
    (folder / REPORT_FILE).write_text(json.dumps(_strict(summary), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    records = pd.DataFrame(writer.rows)
    records["dropped_rows"] = [checked.dropped.get(slide, 0) for slide in records["slide_id"]]
    num_instances, stored = int(records["num_instances"].sum()), int(records["length"].sum())
    warnings = (*summary["warnings"], *_warnings(checked, records))
    index = ShardIndex(
        feature_shape=writer.feature_shape,
        dtype=writer.dtype,
        shards=tuple(
            ShardFile(name, size, (folder / name).stat().st_mtime_ns, count)
            for name, size, count in zip(names, writer.sizes, writer.counts)
        ),
        records=records,
        excluded=tuple(checked.excluded),
        notes=(*notes, *warnings),
        largest_relative_error=checked.largest_error,
        num_neighbors=writer.num_neighbors,
        num_parts=writer.num_parts,
    )
    write_index(folder, index)
    return ShardWriteReport(
        folder=target,
        num_slides=len(records),
        num_instances=num_instances,
        feature_bytes=num_instances * math.prod(writer.feature_shape) * writer.dtype.itemsize,
        padding_waste=1.0 - num_instances / stored,
        excluded=index.excluded,
        dropped_rows=checked.dropped,
        largest_relative_error=checked.largest_error,
        features=summary,
        warnings=warnings,
    )


def _warnings(checked: SlideChecks, records: pd.DataFrame) -> list[str]:
    found = []
    if checked.dropped:
        count = sum(checked.dropped.values())
        found.append(f"{count} rows that are not finite were left out of {len(checked.dropped)} slides")
    unknown = int((records["encoder"] == UNKNOWN).sum())
    if unknown:
        found.append(
            f"{unknown} of {len(records)} slides name no encoder; 'unknown' is recorded: name it with encoder_name"
        )
    encoders = records["encoder"].value_counts()
    if len(encoders) > 1:
        named = ", ".join(f"{name} ({count} slides)" for name, count in encoders.items())
        found.append(f"the slides name several encoders: {named}")
    return found


def _write_metadata(folder: Path, writer: _RecordWriter) -> None:
    """TensorFlow Datasets' description of the records, which its readers look for beside the shards."""
    import tensorflow_datasets as tfds

    def array(shape: tuple[int | None, ...], dtype: DTypeLike) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype).type, encoding="bytes")

    real, text = tfds.features.Scalar(dtype=np.float32), tfds.features.Text()
    features = {
        "slide_id": text,
        "num_instances": tfds.features.Scalar(dtype=np.int64),
        "tile_size_level0": real,
        "mpp_level0": real,
        "coordinate_unit": text,
        "encoder": text,
        "tile_order": text,
        "coords": array((None, 2), np.int32),
        "mask": array((None,), np.bool_),
        **({"neighbors": array((None, writer.num_neighbors), np.int32)} if writer.num_neighbors else {}),
        **({"part_mask": array((None, writer.num_parts), np.bool_)} if writer.num_parts else {}),
        "features": array((None, *writer.feature_shape), writer.dtype),
    }
    split = tfds.core.SplitInfo(
        name=_SPLIT,
        shard_lengths=writer.counts,
        num_bytes=sum(writer.sizes),
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=_NAME, split=_SPLIT, filetype_suffix="tfrecord"
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_infos=[split],
        check_data=False,
        description="One slide per example: instances padded to a bucket; `mask` marks the real ones, which come first.",
        disable_shuffling=True,
    )


def _strict(value: Any) -> Any:
    """JSON knows no infinity: numbers that overflowed become null."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unit(slide: SlideBag) -> str:
    return "none" if slide.coords is None else slide.provenance.coordinate_unit
