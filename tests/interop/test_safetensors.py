"""Reading safetensors: every type, and files that are not whole."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.errors import DataError
from mil_jax.interop.torch_checkpoints import load_state_dict


def written(path, arrays):
    """A file as the format's page describes it."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, array) in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def test_arrays_come_back_and_halves_become_float32(tmp_path):
    values = np.arange(6).reshape(2, 3)
    path = written(
        tmp_path / "x.safetensors",
        {
            "a": ("F32", values.astype(np.float32)),
            "b": ("F16", values.astype(np.float16)),
            "c": ("BF16", np.asarray(values, jnp.bfloat16)),
            "d": ("I64", values.astype(np.int64)),
            "e": ("F32", np.float32(7)),
        },
    )
    arrays = load_state_dict(path)
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "a": "float32",
        "b": "float32",
        "c": "float32",
        "d": "int64",
        "e": "float32",
    }
    for name in "abcd":
        np.testing.assert_array_equal(arrays[name], values)
    assert arrays["e"] == 7


@pytest.mark.parametrize("keep", [0, 7, 40, -4])
def test_a_file_that_was_cut_short_is_named(tmp_path, keep):
    path = written(tmp_path / "x.safetensors", {"a": ("F32", np.ones(8, np.float32))})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.safetensors: cannot be read as a safetensors file"):
        load_state_dict(path)
