"""An encoder at work: pixels of tiles -> what it reads -> vectors, in batches of one size, on all devices of this machine.

Resizing is Pillow's, on 8-bit pixels, as in the encoders' own pipelines; the rest (to [0, 1], mean, deviation) is part of the compiled
program, so that what travels to the device is a byte a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from mil_jax.bags import Bag
from mil_jax.encoders.registry import Preprocessing, TileEncoder
from mil_jax.encoders.vit import VisionTransformer

PRECISIONS = ("float32", "bfloat16")
AHEAD = 2  # batches on their way before the first of them is waited for
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TILES = "tiles"

Batch = tuple[np.ndarray, int]  # pixels [B, S, S, 3] uint8, and how many of the B are tiles


def prepared(tile: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """A tile [h, h, 3] uint8 resized and cut as the encoder reads it: [crop, crop, 3] uint8."""
    side = preprocessing.resized
    if tile.shape[0] != side:
        tile = np.asarray(Image.fromarray(tile).resize((side, side), _FILTERS[preprocessing.interpolation]))
    first = round((side - preprocessing.crop) / 2)
    return tile[first : first + preprocessing.crop, first : first + preprocessing.crop]


def batched(tiles: Iterable[np.ndarray], size: int) -> Iterator[Batch]:
    """Tiles [S, S, 3] in batches of one size; what is left of the last one is zeros."""
    batch: np.ndarray | None = None
    count = 0
    for tile in tiles:
        if batch is None:
            batch, count = np.zeros((size, *tile.shape), np.uint8), 0
        batch[count] = tile
        count += 1
        if count == size:
            yield batch, count
            batch = None
    if batch is not None:
        yield batch, count


class Encoding:
    """An encoder with its weights on all devices of this machine.

    batch_size: tiles of a device's part of a batch, so that what a device computes does not depend on how many there are. precision:
    "float32" or "bfloat16", of weights and arithmetic (norms, softmaxes and the result stay float32).
    """

    def __init__(self, encoder: TileEncoder, params: Any, batch_size: int, precision: str = "float32") -> None:
        devices = jax.local_devices()
        self.encoder, self.batch_size = encoder, batch_size * len(devices)
        mesh = Mesh(np.array(devices), (_TILES,))
        everywhere, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P(_TILES))
        dtype = jnp.dtype(precision)
        self._params = jax.device_put(jax.tree.map(lambda x: np.asarray(x, dtype), params), everywhere)
        self._parts = parts
        module = encoder.module
        if isinstance(module, VisionTransformer):
            module = module.clone(at_once=self.batch_size)
        mean, std = (np.asarray(x, np.float32) for x in (encoder.preprocessing.mean, encoder.preprocessing.std))

        def encode(params: Any, pixels: jax.Array) -> jax.Array:
            images = ((pixels.astype(jnp.float32) / 255.0 - mean) / std).astype(dtype)
            bag = Bag(images, jnp.ones(len(images), bool))
            return module.apply({"params": params}, bag).features.astype(jnp.float32)

        self._program = jax.jit(encode, in_shardings=(everywhere, parts), out_shardings=parts)

    def __call__(self, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
        """The vectors [count, width] float32 of each batch. The next batches are read while the devices compute."""
        pending: list[tuple[jax.Array, int]] = []
        for pixels, count in batches:
            pending.append((self._program(self._params, jax.device_put(pixels, self._parts)), count))
            if len(pending) > AHEAD:
                yield _fetched(*pending.pop(0))
        for vectors, count in pending:
            yield _fetched(vectors, count)


def _fetched(vectors: jax.Array, count: int) -> np.ndarray:
    return np.asarray(vectors)[:count]
