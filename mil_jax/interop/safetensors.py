"""Reading safetensors files: 8 bytes of length, a JSON header (name -> type, shape, place), then the numbers, little-endian.

The format is documented at github.com/huggingface/safetensors; nothing in a file is ever executed.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mil_jax.errors import DataError

_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def load(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name; numbers narrower than float32 as float32. Raises DataError for a file that is not whole."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError("its header is not there")
            header = json.loads(file.read(length))
        content = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        claimed = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in entries.values())
        if claimed > len(content):
            raise ValueError("its arrays overlap, or it was cut short")
        return {name: _array(content, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error}); download it again") from error


def _array(content: np.ndarray, entry: dict) -> np.ndarray:
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(content):
        raise ValueError("it was cut short")
    array = content[first:last].view(np.dtype(_TYPES[entry["dtype"]])).reshape(entry["shape"])
    # A copy, so that the file need not stay.
    return np.array(array, np.float32 if array.dtype.itemsize == 2 and entry["dtype"].endswith("F16") else array.dtype)
