"""Reading shards: a slide's features by number, by offset, straight into the caller's array, from any thread.

A shard is a TFRecord file of tf.train.Example messages, one slide's padded and masked bag each (see `writer.py`);
the index beside it says where every bag lies. Only the n real rows are read. `verify` recomputes a record's checksum
and names shard, record and slide.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd

from mil_jax.data.shards import tfrecord
from mil_jax.data.shards.index import REWRITE, ShardIndex, read_index, where
from mil_jax.errors import ShardError
from mil_jax.files import restore

_PROVENANCE = ("tile_size_level0", "mpp_level0", "coordinate_unit", "encoder", "tile_order", "source", "source_mtime")
_VERIFY_BYTES = 1 << 20  # read and checked at a time: stays in the cache


class Shards:
    """An open shard folder.

    slide_ids: ids in the order of the records. num_instances: int64 [S]. feature_shape: F. dtype: as stored.
    provenance: a table of S rows (tile_size_level0, mpp_level0, coordinate_unit, encoder, tile_order, source,
    source_mtime). excluded: (slide, reason) of slides that were not stored. notes: sentences written at conversion.
    fingerprint: identity of the stored data. num_neighbors: length of each tile's list of neighbours, 0 without such lists.
    num_parts: tiles of each region, 0 where instances are no regions.
    """

    def __init__(self, folder: Path, index: ShardIndex) -> None:
        self.folder = folder
        self.slide_ids: list[str] = index.records["slide_id"].tolist()
        self.num_instances: np.ndarray = index.records["num_instances"].to_numpy(np.int64)
        self.feature_shape = index.feature_shape
        self.dtype = index.dtype
        self.provenance: pd.DataFrame = index.records[list(_PROVENANCE)]
        self.excluded = index.excluded
        self.notes = index.notes
        self.largest_relative_error = index.largest_relative_error
        self.num_neighbors = index.num_neighbors
        self.num_parts = index.num_parts
        self.fingerprint = index.fingerprint()
        self._row_bytes = math.prod(self.feature_shape) * self.dtype.itemsize
        self._records = {name: index.records[name].to_numpy() for name in index.records.columns}
        self._paths = [folder / shard.file for shard in index.shards]
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Shards:
        """Opens a folder. Raises ShardError where the index is missing, damaged, or does not fit the shards."""
        restore(Path(folder))
        return cls(Path(folder), read_index(Path(folder)))

    def __len__(self) -> int:
        return len(self.slide_ids)

    def num_bytes(self, i: int) -> int:
        """Bytes of the features of slide i."""
        return int(self.num_instances[i]) * self._row_bytes

    def read_features(self, i: int, out: np.ndarray, first: int | None = None) -> None:
        """Reads the features of slide i into `out` [n, *F], C-contiguous, of the stored type, without a checksum; with `first` only as
        many rows from that one as `out` has.

        Raises ShardError when the shard ends early or cannot be read.
        """
        rows = int(self.num_instances[i]) if first is None else min(len(out), int(self.num_instances[i]) - first)
        shape = (rows, *self.feature_shape)
        if out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be a C-contiguous {self.dtype} array {shape}, not {out.dtype} {out.shape}")
        self._read(i, int(self._records["features_offset"][i]) + (first or 0) * self._row_bytes, [out])

    def read_coords(self, i: int) -> np.ndarray | None:
        """Coordinates [n, 2] int32 of slide i, or None where its features came without."""
        if self._records["coordinate_unit"][i] == "none":
            return None
        coords = np.empty((int(self.num_instances[i]), 2), "<i4")
        self._read(i, int(self._records["coords_offset"][i]), [coords])
        return coords

    def read_neighbors(self, i: int) -> np.ndarray:
        """Neighbours [n, num_neighbors] int32 of slide i: each tile's nearest, nearest first, by number in the slide, -1 for none."""
        neighbors = np.empty((int(self.num_instances[i]), self.num_neighbors), "<i4")
        self._read(i, int(self._records["neighbors_offset"][i]), [neighbors])
        return neighbors

    def read_part_mask(self, i: int) -> np.ndarray:
        """Which tiles of each region of slide i there are, bool [n, num_parts]."""
        part_mask = np.empty((int(self.num_instances[i]), self.num_parts), bool)
        self._read(i, int(self._records["part_mask_offset"][i]), [part_mask])
        return part_mask

    def verify(self, i: int) -> None:
        """Checks every byte of the record of slide i. Raises ShardError naming shard, record and slide."""
        start, message_bytes = int(self._records["offset"][i]), int(self._records["message_bytes"][i])
        head, foot = np.empty(tfrecord.HEADER_BYTES, np.uint8), np.empty(tfrecord.FOOTER_BYTES, np.uint8)
        self._read(i, start, [head])
        if head.tobytes() != tfrecord.header(message_bytes):
            raise self._error(i, "the record's header does not match its index")
        start += tfrecord.HEADER_BYTES
        stop = start + message_bytes
        crc, block = 0, np.empty(min(_VERIFY_BYTES, message_bytes), np.uint8)
        for offset in range(start, stop, _VERIFY_BYTES):
            piece = block[: stop - offset]
            self._read(i, offset, [piece])
            crc = google_crc32c.extend(crc, piece)
        self._read(i, stop, [foot])
        checksum = int(self._records["checksum"][i])
        if tfrecord.mask(crc) != checksum or foot.tobytes() != tfrecord.footer(checksum):
            raise self._error(i, "checksum mismatch, the data were altered")

    def _read(self, i: int, offset: int, buffers: list[np.ndarray]) -> None:
        try:
            complete = tfrecord.read_fully(self._descriptor(int(self._records["shard"][i])), offset, buffers)
        except OSError as error:
            raise self._error(i, f"cannot be read ({error.strerror})") from error
        if not complete:
            raise self._error(i, "the shard ends before this record does, it was cut short")

    def _descriptor(self, shard: int) -> int:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                if shard not in self._descriptors:
                    self._descriptors[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
                descriptor = self._descriptors[shard]
        return descriptor

    def _error(self, i: int, what: str) -> ShardError:
        row = {"record": self._records["record"][i], "slide_id": self.slide_ids[i]}
        return ShardError(f"{where(self._paths[int(self._records['shard'][i])], row)}: {what}; {REWRITE}")


def _close_all(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    descriptors.clear()
