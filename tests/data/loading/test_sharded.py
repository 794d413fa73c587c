"""A cohort held by all devices together: each bag whole on one device, as evenly as bags can be dealt, and the same in every window."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.data.loading.resident import load_bags
from mil_jax.data.loading.sharded import ShardedBags, ShardedLoader, deal, fullest
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.engine.bag_order import EpochOrder
from mil_jax.engine.mesh import replica_mesh
from mil_jax.interop.slide_bag import Provenance, SlideBag

WIDTH, LONGEST, NUM_BAGS = 5, 16, 9
PROVENANCE = Provenance(coordinate_unit="level0_pixels")


@pytest.mark.parametrize("devices", [1, 3, 8, 40])
def test_no_device_has_more_than_the_mean_and_one_bag(devices):
    sizes = np.random.default_rng(0).lognormal(8, 1, 30).astype(np.int64)
    owner = deal(sizes, devices)
    held = np.bincount(owner, sizes, devices)
    assert held.max() == fullest(sizes, devices) <= sizes.sum() / devices + sizes.max()
    assert held.max() - held[held > 0].min() <= sizes.max()


def test_windows_hold_the_bags_of_their_owners_and_each_device_only_its_own(tmp_path):
    rng = np.random.default_rng(0)
    slides = [
        SlideBag(
            f"{k}",
            rng.standard_normal((3 + k, WIDTH)).astype(np.float16),
            rng.integers(0, 9, (3 + k, 2)).astype(np.int32),
            PROVENANCE,
        )
        for k in range(NUM_BAGS)
    ]
    write_shards(slides, tmp_path / "shards", for_tensorflow=False)
    shards, numbers = Shards.open(tmp_path / "shards"), np.arange(NUM_BAGS)[:, None]
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(NUM_BAGS), 2)).reshape(2, NUM_BAGS, 1)
    lo = np.zeros(2, np.int32)
    runs = ((0, lo, lo + NUM_BAGS),)
    mesh = replica_mesh()
    most_bytes = 3 * 2 * LONGEST * (WIDTH * 2 + 12)  # windows of one step of both runs

    def put(tree):
        return jax.device_put(tree, NamedSharding(mesh, P()))

    loader = ShardedLoader(ShardedBags(shards, numbers, most_bytes), (LONGEST,), put, mesh, EpochOrder(order, runs, lo))
    bags, rows = load_bags(shards, numbers, LONGEST), fullest(loader.sizes, mesh.size)
    assert {part.data.shape for part in loader._owned.features.addressable_shards} == {(rows, WIDTH)}
    seen = 0
    for piece in loader.windows(order, runs):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), piece.bags) == jax.tree.map(
            lambda x: (x.shape, x.dtype), loader.shapes(0)
        )
        for r in range(2):
            for t in range(piece.lo[r], piece.hi[r]):
                number, seen = int(order[r, t, 0]), seen + 1
                mask = np.asarray(bags.bag(number, LONGEST).mask)
                found, expected = (
                    jax.tree.map(lambda x, m=mask: np.asarray(x)[m], x.bag(number, LONGEST)) for x in (piece.bags, bags)
                )
                jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert seen == order.size
    assert [number for number, _ in loader.instances(np.array([4, 2]))] == [4, 2]
