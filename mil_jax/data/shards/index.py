"""The index beside the shards makes access random: `index.json` (the folder) and `records.csv` (one row per slide).

`records.csv` gives each record's shard, offsets of its message, features and coordinates in bytes, and the checksum
that stands in the shard. Both files are readable without this library. Opening compares the index with the shards:
sizes always, and, where a shard has changed since the index was written, every record's header and checksum; so a
copied folder opens and an exchanged shard does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pandas as pd

from mil_jax.csv_cells import inert_table, original_table
from mil_jax.data.shards import tfrecord
from mil_jax.errors import ShardError

INDEX_FILE, RECORDS_FILE = "index.json", "records.csv"
FORMAT, VERSION = "mil_jax.shards", 1
# What is written, and TensorFlow decodes; another type is never read.
STORABLE = ("float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
REWRITE = "write the shards again with python -m data_prep.shard"

_TEXT = ("slide_id", "coordinate_unit", "encoder", "tile_order", "source")
_WHOLE = (
    *("shard", "record", "offset", "message_bytes", "features_offset", "coords_offset"),
    *("length", "num_instances", "checksum", "dropped_rows"),
)
_GRAPH, _PARTS = "neighbors_offset", "part_mask_offset"
_REAL = ("tile_size_level0", "mpp_level0", "source_mtime")


@dataclass(frozen=True)
class ShardFile:
    """One shard: its name in the folder, size, modification time when written, and number of records."""

    file: str
    num_bytes: int
    mtime_ns: int
    num_records: int


@dataclass(frozen=True)
class ShardIndex:
    """All that is known about a shard folder without reading the shards.

    records: one row per slide in the order of the records. excluded: (slide, reason). notes: sentences for people,
    written at conversion. largest_relative_error: of a cast to a narrower type, None without a cast. num_neighbors: the length
    of each tile's list of neighbours, 0 without such lists; with them `records` has the column `neighbors_offset`. num_parts: tiles
    of a region, 0 where instances are no regions; with them there is the column `part_mask_offset`.
    """

    feature_shape: tuple[int, ...]
    dtype: np.dtype
    shards: tuple[ShardFile, ...]
    records: pd.DataFrame
    excluded: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    largest_relative_error: float | None = None
    num_neighbors: int = 0
    num_parts: int = 0

    def fingerprint(self) -> str:
        """Stable identity of the stored data: slides, order, shapes and checksums; not paths and times."""
        parts = [list(self.feature_shape), self.dtype.str, self.records["slide_id"].tolist()]
        parts.append(self.records["checksum"].tolist())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def write_index(folder: Path, index: ShardIndex) -> None:
    """Writes both files into a folder that is not yet in its place."""
    optional = [name for name, count in ((_GRAPH, index.num_neighbors), (_PARTS, index.num_parts)) if count]
    records = inert_table(index.records[[*_TEXT, *_WHOLE, *_REAL, *optional]])
    table = records.to_csv(index=False, na_rep="nan").encode()
    (folder / RECORDS_FILE).write_bytes(table)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "feature_shape": list(index.feature_shape),
        "dtype": index.dtype.name,
        "num_slides": len(index.records),
        "fingerprint": index.fingerprint(),
        "records_crc32c": google_crc32c.value(table),
        "largest_relative_error": index.largest_relative_error,
        "num_neighbors": index.num_neighbors,
        "num_parts": index.num_parts,
        "notes": index.notes,
        "excluded": index.excluded,
        "shards": [asdict(shard) for shard in index.shards],
    }
    content["crc32c"] = _checksum(content)
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _checksum(content: dict[str, Any]) -> int:
    """Of all that index.json says, but for the checksum itself."""
    said = {name: value for name, value in content.items() if name != "crc32c"}
    return int(google_crc32c.value(json.dumps(said, sort_keys=True).encode()))


def read_index(folder: Path) -> ShardIndex:
    """Reads the index and compares it with the shards. Raises ShardError naming what does not fit."""
    path = folder / INDEX_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = (folder / RECORDS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder}: not a folder of shards ({Path(error.filename).name} is missing); {REWRITE}"
        ) from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: cannot be read ({error}); {REWRITE}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ShardError(f"{path}: not an index of version {VERSION} of this library; {REWRITE}")
    if content.get("crc32c", _checksum(content)) != _checksum(content):  # absent before version 0.2
        raise ShardError(f"{path}: its checksum does not fit, so it was altered; {REWRITE}")
    if google_crc32c.value(table) != content.get("records_crc32c"):
        raise ShardError(f"{folder / RECORDS_FILE}: does not belong to {INDEX_FILE} beside it; {REWRITE}")
    try:
        index = _parsed(content, folder / RECORDS_FILE)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ShardError(f"{path}: damaged ({error!r}); {REWRITE}") from error
    for number, shard in enumerate(index.shards):
        _compare(folder, index, number, shard)
    return index


def _parsed(content: dict[str, Any], records: Path) -> ShardIndex:
    types = (
        dict.fromkeys(_TEXT, str)
        | dict.fromkeys(_WHOLE, np.int64)
        | dict.fromkeys(_REAL, np.float64)
        | {_GRAPH: np.int64, _PARTS: np.int64}
    )
    missing = {column: ["nan"] for column in _REAL}
    table = original_table(pd.read_csv(records, dtype=types, keep_default_na=False, na_values=missing))
    # Absent from shards that were written before there were graphs and regions.
    num_neighbors, num_parts = content.get("num_neighbors", 0), content.get("num_parts", 0)
    optional = [column for column, count in ((_GRAPH, num_neighbors), (_PARTS, num_parts)) if count]
    if lacking := [column for column in (*_TEXT, *_WHOLE, *_REAL, *optional) if column not in table]:
        raise ValueError(f"no column {', '.join(lacking)}")
    if len(table) != content["num_slides"]:
        raise ValueError(f"{len(table)} records instead of {content['num_slides']}")
    shape, dtype = tuple(content["feature_shape"]), content["dtype"]
    if dtype not in STORABLE:
        raise ValueError(f"features of type {dtype!r}, not one of {', '.join(STORABLE)}")
    if not shape or not all(type(size) is int and 0 < size < 2**31 for size in shape):
        raise ValueError(f"features of shape {shape}")
    for name, count in (("num_neighbors", num_neighbors), ("num_parts", num_parts)):
        if type(count) is not int or not 0 <= count < 2**31:
            raise ValueError(f"{name}={count!r}")
    texts = [*content["notes"], *(text for pair in content["excluded"] for text in pair)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("notes that are no text")
    if not isinstance(content["largest_relative_error"], float | int | None):
        raise ValueError("a largest_relative_error that is no number")
    shards = tuple(ShardFile(**shard) for shard in content["shards"])
    _require_shards(table, shards)
    _require_room(table, math.prod(shape) * np.dtype(dtype).itemsize, num_neighbors, num_parts)
    index = ShardIndex(
        feature_shape=shape,
        dtype=np.dtype(dtype).newbyteorder("<"),
        shards=shards,
        records=table,
        excluded=tuple((slide, reason) for slide, reason in content["excluded"]),
        notes=tuple(content["notes"]),
        largest_relative_error=content["largest_relative_error"],
        num_neighbors=num_neighbors,
        num_parts=num_parts,
    )
    if index.fingerprint() != content["fingerprint"]:
        raise ValueError("its fingerprint is not that of what it lists")
    return index


def _require_shards(records: pd.DataFrame, shards: tuple[ShardFile, ...]) -> None:
    """Raises ValueError where a shard lies outside of the folder, or the records are not those that fill the shards."""
    for shard in shards:
        if not isinstance(shard.file, str) or Path(shard.file).name != shard.file or "\0" in shard.file:
            raise ValueError(f"a shard named {shard.file!r}")
        if not all(type(size) is int for size in (shard.num_bytes, shard.mtime_ns, shard.num_records)):
            raise ValueError(f"the sizes of {shard.file} are no whole numbers")
    if records["slide_id"].duplicated().any() or (records["slide_id"] == "").any():
        raise ValueError("a slide without an id, or twice")
    if (records[["num_instances", "length", "offset", "message_bytes"]] < 0).any(axis=None):
        raise ValueError("a negative size")
    # In floats: whole numbers of 64 bits would overflow where a size is absurd.
    ends = records["offset"].astype(float) + records["message_bytes"].astype(float)
    stops = (ends + tfrecord.HEADER_BYTES + tfrecord.FOOTER_BYTES).groupby(records["shard"]).agg(["max", "size"])
    if stops.to_dict("index") != {
        number: {"max": shard.num_bytes, "size": shard.num_records} for number, shard in enumerate(shards)
    }:
        raise ValueError("its records are not those of its shards")


def _require_room(records: pd.DataFrame, row_bytes: int, num_neighbors: int, num_parts: int) -> None:
    """Raises ValueError where what the index says of a record does not lie within the record."""
    if not records["num_instances"].between(1, records["length"]).all():
        raise ValueError("more instances than rows, or none")
    start = records["offset"] + tfrecord.HEADER_BYTES
    end = (start + records["message_bytes"]).astype(float)
    if (records["features_offset"] + records["length"].astype(float) * row_bytes != end).any():
        raise ValueError("features of another shape than its records hold")  # they are the last in a message
    parts = [("features_offset", row_bytes), ("coords_offset", 8)]
    parts += [
        (column, size * count) for column, size, count in ((_GRAPH, 4, num_neighbors), (_PARTS, 1, num_parts)) if count
    ]
    for column, size in parts:
        stop = records[column].astype(float) + records["num_instances"].astype(float) * size
        if ((records[column] < start) | (stop > end)).any():
            raise ValueError(f"{column} lies outside of its record")


def _compare(folder: Path, index: ShardIndex, number: int, shard: ShardFile) -> None:
    path = folder / shard.file
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(f"{path}: the shard is missing or cannot be read; {REWRITE}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ShardError(f"{path}: the shard is no file; {REWRITE}")
    if status.st_size == shard.num_bytes and status.st_mtime_ns == shard.mtime_ns:
        return
    rows = index.records[index.records["shard"] == number]
    if status.st_size < shard.num_bytes:
        ends = rows["offset"] + tfrecord.HEADER_BYTES + rows["message_bytes"] + tfrecord.FOOTER_BYTES
        lost = rows[ends > status.st_size].iloc[0]
        raise ShardError(f"{where(path, lost)}: the shard ends before this record does, it was cut short; {REWRITE}")
    if status.st_size > shard.num_bytes:
        raise ShardError(f"{path}: larger than its index says, so the index is older than the shard; {REWRITE}")
    _compare_frames(path, rows)


def _compare_frames(path: Path, rows: pd.DataFrame) -> None:
    """Compares the frame of every record with the index: cheap, and it notices a shard that was rewritten."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        head, foot = np.empty(tfrecord.HEADER_BYTES, np.uint8), np.empty(tfrecord.FOOTER_BYTES, np.uint8)
        columns = (rows[name].tolist() for name in ("offset", "message_bytes", "checksum"))
        for number, (start, message_bytes, checksum) in enumerate(zip(*columns)):
            tfrecord.read_fully(descriptor, start, [head])
            tfrecord.read_fully(descriptor, start + tfrecord.HEADER_BYTES + message_bytes, [foot])
            same = head.tobytes() == tfrecord.header(message_bytes) and foot.tobytes() == tfrecord.footer(checksum)
            if not same:
                row = rows.iloc[number]
                raise ShardError(
                    f"{where(path, row)}: the index is older than the shard or belongs to another one; {REWRITE}"
                )
    finally:
        os.close(descriptor)


def where(path: Path, row: Any) -> str:
    """`shards/bags-slides.tfrecord-00000-of-00001, record 17 (slide TCGA-AB-1234)`."""
    return f"{path}, record {row['record']} (slide {row['slide_id']})"
