"""TensorFlow's own reader: it must see our shards bit for bit. Needs the extra `test-tensorflow`."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import Provenance, SlideBag
from tests.skips import needs

pytestmark = pytest.mark.full


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int16", "int32"])
@pytest.mark.parametrize("shape", [(16,), (5, 6, 3)])
def test_tensorflow_reads_shards_bit_for_bit(tmp_path, dtype, shape):
    needs("tensorflow")
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    bags = []
    for k, n in enumerate((1, 7, 130, 1030)):
        features = (rng.normal(size=(n, *shape)) * 50).astype(dtype)
        coords = rng.integers(-9, 100_000, (n, 2)).astype(np.int32) if k % 2 else None
        unit = "level0_pixels" if k % 2 else "none"
        bags.append(
            SlideBag(f"slide.{k}", features, coords, Provenance(512.0 + k, coordinate_unit=unit, encoder="uni"))
        )
    write_shards(bags, tmp_path / "shards", shard_bytes=20_000)

    builder = tfds.builder_from_directory(tmp_path / "shards")
    examples = list(tfds.as_numpy(builder.as_dataset(split="slides")))
    assert builder.info.splits["slides"].num_examples == len(bags)
    assert [example["slide_id"].decode() for example in examples] == Shards.open(tmp_path / "shards").slide_ids
    for example, bag in zip(examples, bags):
        n = len(bag.features)
        assert example["num_instances"] == n
        assert example["mask"].tolist() == [True] * n + [False] * (len(example["mask"]) - n)
        assert example["features"].dtype == bag.features.dtype
        assert example["features"][:n].tobytes() == bag.features.tobytes()
        assert not example["features"][n:].any()
        if bag.coords is not None:
            assert np.array_equal(example["coords"][:n], bag.coords)
        assert example["coordinate_unit"].decode() == bag.provenance.coordinate_unit
        assert example["encoder"] == b"uni"
        assert example["tile_size_level0"] == bag.provenance.tile_size_level0
        assert np.isnan(example["mpp_level0"])


def test_tensorflow_reads_the_graphs_of_slides(tmp_path):
    needs("tensorflow")
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    bags = []
    for number, n in enumerate((1, 5, 130)):
        cells = rng.permutation(200)[:n]
        coords = np.stack([cells % 15, cells // 15], axis=1).astype(np.int32) * 256
        where = Provenance(256.0, coordinate_unit="level0_pixels")
        bags.append(SlideBag(f"slide.{number}", rng.normal(size=(n, 4)).astype(np.float32), coords, where))
    write_shards(bags, tmp_path / "shards", num_neighbors=8)

    shards = Shards.open(tmp_path / "shards")
    builder = tfds.builder_from_directory(tmp_path / "shards")
    examples = list(tfds.as_numpy(builder.as_dataset(split="slides")))
    assert [example["slide_id"].decode() for example in examples] == shards.slide_ids
    for number, (example, bag) in enumerate(zip(examples, bags)):
        lists = example["neighbors"]
        assert lists.dtype == np.int32
        assert lists.shape == (len(example["mask"]), 8)
        assert lists[example["mask"]].tobytes() == shards.read_neighbors(number).astype("<i4").tobytes()
        assert lists[example["mask"]].tobytes() == nearest_neighbors(bag.coords, 8, "a").tobytes()
        assert (lists[~example["mask"]] == -1).all()
