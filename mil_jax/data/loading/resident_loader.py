"""The data loader of a cohort that every device holds whole.

A CPU uses the host's array in place. To an accelerator the cohort goes block by block, so that the host never holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.data.loading.resident import (
    Put,
    ResidentBags,
    Window,
    bag_sizes,
    in_step,
    load_bags,
    new_rows,
    real_features,
    row_bytes,
    slide_rows,
)
from mil_jax.data.loading.windows import Dispatch
from mil_jax.data.shards.reader import Shards


@dataclass(frozen=True)
class LazyBags:
    """A cohort in its shards that is read as a whole, when it is first needed. As for `load_bags`."""

    shards: Shards
    slides: Sequence[np.ndarray]
    longest: int
    num_neighbors: int = 0
    _uploaded: dict[Any, ResidentBags] = field(default_factory=dict, repr=False, compare=False)  # by where they lie

    @cached_property
    def sizes(self) -> np.ndarray:
        """int32 [num_bags], instances of each bag."""
        return bag_sizes(self.shards, self.slides).astype(np.int32)

    @cached_property
    def loaded(self) -> ResidentBags:
        """The bags, in host memory, read the first time. Raises ShardError for a torn or altered record."""
        return load_bags(self.shards, self.slides, self.longest, self.num_neighbors)

    @property
    def shapes(self) -> ResidentBags:
        """What `loaded` is."""
        rows, number = int(self.sizes.sum()) + self.longest, len(self.sizes)

        def whole(*axes: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(axes, dtype)

        features = jax.ShapeDtypeStruct((rows, *self.shards.feature_shape), self.shards.dtype)
        neighbors = whole(rows, self.num_neighbors) if self.num_neighbors else None
        parts = whole(rows, self.shards.num_parts, dtype=bool) if self.shards.num_parts else None
        return ResidentBags(features, whole(rows, 2), whole(rows), whole(number), whole(number), neighbors, parts)

    def on_devices(self, put: Put) -> ResidentBags:
        """The bags, on the devices, brought there the first time. Raises ShardError as `loaded` does."""
        where = put(np.zeros(1, np.int32)).sharding
        if where not in self._uploaded:
            self._uploaded.clear()
            self._uploaded[where] = self._upload(put)
        return self._uploaded[where]

    def _upload(self, put: Put) -> ResidentBags:
        """Through `longest` rows of host memory."""
        part = new_rows(self.shards, self.longest, self.num_neighbors)
        offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int32)
        block = part.bags(slice(None), offsets, self.sizes).replace(offsets=None, sizes=None)
        whole = _zeros(put(jax.tree.map(lambda x: x[:1], block)), self.longest + int(self.sizes.sum()))
        begin = end = 0  # rows of the cohort that are in the block

        def send(whole: ResidentBags) -> ResidentBags:
            for array in part.arrays:
                array[end - begin :] = 0
            written: ResidentBags = _written(whole, put(block), begin)
            return jax.block_until_ready(written)  # then the block is filled again

        for bag, numbers in enumerate(self.slides):
            first = int(offsets[bag])
            for position, (number, start, stop) in enumerate(slide_rows(self.shards, numbers, first)):
                if stop - begin > self.longest:
                    whole, begin = send(whole), start
                self.shards.verify(number)
                part.read_slide(self.shards, number, slice(start - begin, stop - begin), position, first - begin)
                end = stop
        placed: ResidentBags = send(whole).replace(offsets=put(offsets), sizes=put(self.sizes))
        return placed


def _zeros(like: ResidentBags, rows: int) -> ResidentBags:
    """Arrays of so many rows, else as `like`, made on the devices."""
    shardings = jax.tree.map(lambda x: x.sharding, like)
    made: ResidentBags = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), like), out_shardings=shardings
    )()
    return made


@partial(jax.jit, donate_argnums=0)
def _written(whole: ResidentBags, part: ResidentBags, begin: int) -> ResidentBags:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, begin, 0), whole, part)


class ResidentLoader:
    """The data loader of a cohort that is whole on the devices: a dispatch is one window. Bags are read when they are first needed."""

    steps: list[int] | None = None  # of its windows by bucket, where not every dispatch is one

    def __init__(self, bags: ResidentBags | LazyBags, put: Put) -> None:
        """put: brings host arrays to every device."""
        self._bags, self._put = bags, put
        like = bags.shapes if isinstance(bags, LazyBags) else bags
        placed = put(np.zeros(1, np.int32)).sharding
        self._shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), like)

    @property
    def _unread(self) -> LazyBags | None:
        """Bags of which the host holds no more than a block."""
        return self._bags if isinstance(self._bags, LazyBags) and jax.default_backend() != "cpu" else None

    @property
    def _on_host(self) -> ResidentBags:
        return self._bags.loaded if isinstance(self._bags, LazyBags) else self._bags

    @cached_property
    def _on_devices(self) -> ResidentBags:
        on_devices: ResidentBags = self._unread.on_devices(self._put) if self._unread else self._put(self._on_host)
        return on_devices

    def read(self) -> None:
        """Brings the bags to the devices, unless they are there. Raises ShardError for a torn or altered record."""
        _ = self._on_devices

    @property
    def host_bytes(self) -> int:
        """Host memory that the bags take."""
        if self._unread:
            return self._unread.longest * row_bytes(self._unread.shards, self._unread.num_neighbors)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._shapes))

    def shapes(self, bucket: int) -> ResidentBags:
        """Shapes of what a dispatch of the bucket reads."""
        del bucket
        return self._shapes

    def windows(self, bags: np.ndarray, dispatches: Sequence[Dispatch]) -> Iterator[Window]:
        """The windows of dispatches (bucket, lo [R], hi [R]) over bags [R, T, B]."""
        del bags
        return in_step(Window(bucket, lo, hi, self._on_devices, ends_dispatch=True) for bucket, lo, hi in dispatches)

    def instances(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, features [n, *F]) of each bag, on the host; of regions those of the tiles there are."""
        if self._unread:
            for number in numbers.tolist():
                one = load_bags(self._unread.shards, [self._unread.slides[number]], 0)
                yield number, real_features(one, slice(None))
            return
        host = self._on_host
        offsets, sizes = np.asarray(host.offsets), np.asarray(host.sizes)
        for number in numbers.tolist():
            yield number, real_features(host, slice(offsets[number], offsets[number] + sizes[number]))

    def verify_rest(self) -> None:
        """Every record was checked when it was read."""

    def close(self) -> None:
        """Nothing is open."""
