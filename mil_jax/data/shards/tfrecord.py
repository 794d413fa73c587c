"""TFRecord framing and tf.train.Example messages, written by hand so that no byte of the features is copied.

A record is an 8-byte length, its masked crc32c, the message, and the message's masked crc32c
(tensorflow.org/tutorials/load_data/tfrecord). The message is protobuf: Example{features{map<name, Feature{bytes_list
| float_list | int64_list}>}}. Values of bytes features may be given as several buffers: rows of features, then zeros
of padding. TensorFlow cannot read a message of 2 GiB or more.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np

HEADER_BYTES = 12
FOOTER_BYTES = 4
MAX_MESSAGE_BYTES = 2**31 - 1

_MASK_DELTA = 0xA282EAD8
_MOST_BUFFERS = 512  # in one call of preadv or writev; systems allow at least this many

Buffer = bytes | np.ndarray  # a C-contiguous array counts as its bytes


def masked_crc32c(buffers: Sequence[Buffer]) -> int:
    """TFRecord's checksum of the buffers laid end to end."""
    crc = 0
    for buffer in buffers:
        crc = google_crc32c.extend(crc, buffer)
    return mask(crc)


def mask(crc: int) -> int:
    """TFRecord's masking: a checksum of data that holds checksums would be weak."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def size(buffers: Sequence[Buffer]) -> int:
    """Bytes in all buffers."""
    return sum(len(buffer) if isinstance(buffer, bytes) else buffer.nbytes for buffer in buffers)


def header(message_bytes: int) -> bytes:
    """What stands before a message of that many bytes."""
    length = struct.pack("<Q", message_bytes)
    return length + struct.pack("<I", masked_crc32c([length]))


def footer(checksum: int) -> bytes:
    """What stands behind a message with that masked checksum."""
    return struct.pack("<I", checksum)


def bytes_feature(value: Sequence[Buffer]) -> list[Buffer]:
    """A Feature holding one bytes value, given in pieces."""
    return _field(1, _field(1, value))


def float_feature(value: float) -> list[Buffer]:
    """A Feature holding one float32."""
    return _field(2, _field(1, [struct.pack("<f", value)]))


def int64_feature(value: int) -> list[Buffer]:
    """A Feature holding one non-negative int64."""
    return _field(3, _field(1, [_varint(value)]))


def example(features: dict[str, list[Buffer]]) -> list[Buffer]:
    """An Example message, in pieces, with the features in the order given."""
    entries: list[Buffer] = []
    for name, feature in features.items():
        entries += _field(1, [*_field(1, [name.encode()]), *_field(2, feature)])
    return _field(1, entries)


def offset_of(message: Sequence[Buffer], buffer: Buffer) -> int:
    """Where a buffer that was given to `bytes_feature` begins in a message."""
    position = next(i for i, piece in enumerate(message) if piece is buffer)
    return size(message[:position])


def write_fully(descriptor: int, buffers: Sequence[Buffer]) -> None:
    """Writes all buffers at the end of a file. Raises OSError."""
    views = [_view(buffer) for buffer in buffers if size([buffer])]
    while views:
        written = os.writev(descriptor, views[:_MOST_BUFFERS])
        views = _after(views, written)


def read_fully(descriptor: int, offset: int, buffers: Sequence[np.ndarray]) -> bool:
    """Fills all buffers from the file at an offset; False where the file ends before. Raises OSError."""
    views = [_view(buffer) for buffer in buffers if buffer.nbytes]
    while views:
        count = os.preadv(descriptor, views[:_MOST_BUFFERS], offset)
        if count == 0:
            return False
        offset += count
        views = _after(views, count)
    return True


def _view(buffer: Buffer) -> memoryview:
    return memoryview(buffer if isinstance(buffer, bytes) else buffer.data).cast("B")


def _after(views: list[memoryview], count: int) -> list[memoryview]:
    """The views that remain when `count` bytes are done."""
    done = 0
    while done < len(views) and count >= len(views[done]):
        count -= len(views[done])
        done += 1
    rest = views[done:]
    if count:
        rest[0] = rest[0][count:]
    return rest


def _field(number: int, value: Sequence[Buffer]) -> list[Buffer]:
    """A length-delimited protobuf field."""
    return [bytes([number << 3 | 2]) + _varint(size(value)), *value]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
