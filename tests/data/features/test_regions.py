"""Regions of tiles: where they lie, what is missing in them, and their way through shards to the bags that training reads."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import jax
import numpy as np
import pytest

from mil_jax.config import base_config
from mil_jax.data.features.regions import in_regions
from mil_jax.data.loading.feature_moments import moments
from mil_jax.data.loading.resident import load_bags
from mil_jax.data.loading.resident_loader import LazyBags
from mil_jax.data.loading.streamed import WINDOWS, StreamedBags, StreamingLoader
from mil_jax.data.shards.convert import convert, shards_for_features
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.data_sources import open_shards
from mil_jax.interop.feature_folders import recognise
from mil_jax.interop.slide_bag import Provenance, SlideBag

D, SIZE = 3, 512
WHERE = Provenance(float(SIZE), coordinate_unit="level0_pixels", encoder="e")


def slide(name: str, cells: np.ndarray, corner: tuple[int, int] = (0, 0), dtype: str = "float32") -> SlideBag:
    features = np.random.default_rng(len(cells)).normal(size=(len(cells), D)).astype(dtype)
    return SlideBag(name, features, (cells * SIZE + corner).astype(np.int32), WHERE)


def tissue(n: int, side: int = 40) -> np.ndarray:
    """n cells of a grid, in random order, with holes."""
    numbers = np.random.default_rng(n).permutation(side * side)[:n]
    return np.stack([numbers % side, numbers // side], axis=1)


def test_a_region_is_8192_level_0_pixels_where_tiles_of_20x_come_from_40x():
    """Tiles of 256 at 20x are 512 at level 0. A grid that does not start at (0, 0) keeps its own phase."""
    cells = np.array([[0, 0], [15, 0], [0, 15], [16, 0], [3, 17], [31, 31], [1, 0], [2, 0]])
    found = in_regions(slide("a", cells, corner=(100, 30)), 16)
    np.testing.assert_array_equal(found.coords, [[100, 30], [8292, 30], [100, 8222], [8292, 8222]])
    assert found.provenance.tile_size_level0 == 8192
    assert [np.flatnonzero(mask).tolist() for mask in found.part_mask] == [[0, 1, 2, 15, 240], [0], [19], [255]]


@pytest.mark.parametrize("n", [1, 7, 300])
def test_every_tile_is_in_its_place_and_the_rest_is_zero(n):
    source = slide("a", tissue(n), corner=(7, 1024))
    found = in_regions(source, 4)
    assert found.part_mask.sum() == n
    assert found.part_mask.any(axis=1).all()
    assert not found.features[~found.part_mask].any()
    places = {tuple(xy): row for row, xy in enumerate(source.coords.tolist())}
    for region, part in np.argwhere(found.part_mask):
        x, y = found.coords[region] + np.array([part % 4, part // 4]) * SIZE
        np.testing.assert_array_equal(found.features[region, part], source.features[places[x, y]])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_regions_survive_the_shards_bit_for_bit(dtype, tmp_path):
    slides = [slide(f"s{n}", tissue(n), dtype=dtype) for n in (30, 1, 90)]
    write_shards(slides, tmp_path / "shards", regions=4, for_tensorflow=False)
    shards = Shards.open(tmp_path / "shards")
    assert (shards.num_parts, shards.feature_shape) == (16, (16, D))
    unread = LazyBags(shards, [np.array([2, 1]), np.array([0])], 96)
    bags = unread.loaded
    assert jax.tree.map(lambda x: (x.shape, x.dtype), unread.shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), bags)
    jax.tree.map(np.testing.assert_array_equal, unread.on_devices(jax.device_put), bags)
    expected = [in_regions(source, 4) for source in slides]
    for number, members in enumerate([(2, 1), (0,)]):
        bag = bags.bag(number, 96)
        n = int(bag.num_instances)
        for name in ("features", "part_mask", "coords"):
            joined = np.concatenate([getattr(expected[member], name) for member in members])
            np.testing.assert_array_equal(getattr(bag, name)[:n], joined)
    for number in range(3):
        shards.verify(number)
        np.testing.assert_array_equal(shards.read_part_mask(number), expected[number].part_mask)


def test_regions_are_streamed(tmp_path):
    slides = [slide(f"s{n}", tissue(n)) for n in (9, 30, 12, 25)]
    write_shards(slides, tmp_path / "shards", regions=8, for_tensorflow=False)
    shards = Shards.open(tmp_path / "shards")
    each = [np.array([number]) for number in range(4)]
    resident = load_bags(shards, each, 32)
    numbers, runs = np.arange(4).reshape(1, 4, 1), [(0, np.zeros(1, int), np.full(1, 4))]
    order = dataclasses.make_dataclass("Order", ["bags", "dispatches"])(numbers, runs)
    seen = []
    bags = StreamedBags(shards, each, WINDOWS * 32 * (64 * (4 * D + 1) + 12))
    with contextlib.closing(StreamingLoader(bags, (32,), jax.device_put, order)) as feed:
        for piece in feed.windows(numbers, runs):
            for number in range(int(piece.lo[0]), int(piece.hi[0])):
                bag, whole = piece.bags.bag(number, 32), resident.bag(number, 32)
                n = int(whole.num_instances)
                np.testing.assert_array_equal(bag.part_mask[:n], whole.part_mask[:n])
                np.testing.assert_array_equal(bag.features[:n], whole.features[:n])
                seen.append(number)
        mean, deviation = moments(feed.instances(np.arange(4)), np.ones((1, 4), bool))
    assert seen == [0, 1, 2, 3]
    tiles = np.concatenate([source.features for source in slides])  # of the tiles there are, not of gaps
    np.testing.assert_allclose(mean[0], tiles.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation[0], tiles.std(axis=0), rtol=1e-5)


def with_size(size: float, n: int = 30) -> SlideBag:
    return dataclasses.replace(slide("odd", tissue(n)), provenance=Provenance(size))


def twice() -> SlideBag:
    return slide("odd", np.array([[0, 0], [1, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda: SlideBag("odd", np.ones((3, D), np.float32)), "slide odd has no coordinates, and regions need them"),
        (twice, r"slide odd: 2 tiles lie at the same place, \(0, 0\)"),
        (lambda: with_size(256.0), "slide odd: the step of its grid is 512, but the size of its tiles is 256"),
        (lambda: with_size(1024.0), "slide odd: the step of its grid is 512, but the size of its tiles is 1024"),
        (lambda: with_size(500.0), "slide odd: the step of its grid is 512, but the size of its tiles is 500"),
        (lambda: with_size(math.nan, 3), "slide odd does not say how large its tiles are, and 3 are too few to tell"),
        (lambda: SlideBag("odd", np.ones((2, 9, D), np.float32)), "comes in regions of 9 tiles, but regions of 4 x 4"),
    ],
)
def test_slides_without_regions_are_named(odd, said, tmp_path):
    with pytest.raises(DataError, match=said):
        write_shards([odd()], tmp_path / "shards", regions=4, for_tensorflow=False)


def test_a_size_that_is_not_known_is_read_off_the_grid():
    np.testing.assert_array_equal(in_regions(with_size(math.nan), 4).features, in_regions(with_size(512.0), 4).features)


def test_regions_have_no_neighbors(tmp_path):
    with pytest.raises(ConfigError, match="ask for one of them"):
        write_shards([slide("a", tissue(9))], tmp_path / "shards", regions=4, num_neighbors=8, for_tensorflow=False)


def test_features_that_come_in_regions_are_taken_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    folder, cache = tmp_path / "features", tmp_path / "cache"
    folder.mkdir()
    features = {"a": rng.normal(size=(5, 4, D)), "b": rng.normal(size=(1, 4, D)), "c": rng.normal(size=(1, 4, D))}
    features = {name: x.astype(np.float32) for name, x in features.items()}
    mask = np.array([[True, False, True, True]])
    np.savez(folder / "a.npz", features=features["a"])
    np.savez(folder / "b.npz", features=np.where(mask[..., None], features["b"], np.nan), part_mask=mask)
    np.savez(folder / "c.npz", features=features["c"])  # looks like four tiles behind an axis of batches
    shards = shards_for_features(folder, cache, regions=2)
    assert shards.feature_shape == (4, D)
    bags = load_bags(shards, [np.array([number]) for number in range(3)], 8)
    np.testing.assert_array_equal(bags.bag(0, 8).features[:5], features["a"])
    assert bags.bag(0, 8).part_mask[:5].all()
    np.testing.assert_array_equal(bags.bag(1, 8).part_mask[:1], mask)
    np.testing.assert_array_equal(bags.bag(1, 8).features[0], np.where(mask[0][:, None], features["b"][0], 0))
    np.testing.assert_array_equal(bags.bag(2, 8).features[0], features["c"][0])


def test_a_region_without_tiles_is_named(tmp_path):
    mask = np.array([[True, True], [False, False]])
    np.savez(tmp_path / "s7.npz", features=np.ones((2, 2, D), np.float32), part_mask=mask)
    with pytest.raises(DataError, match=r"s7.*: region 1 has no tile"):
        convert(recognise(tmp_path), tmp_path / "shards")


def test_shards_without_regions_name_the_command(tmp_path):
    write_shards([slide("a", tissue(9))], tmp_path / "shards", for_tensorflow=False)
    config = base_config()
    config.data.update(shards=str(tmp_path / "shards"), regions=16)
    with pytest.raises(DataError, match=r"hold no regions.* python -m data_prep.shard --regions 16"):
        open_shards(config, tmp_path, None)
