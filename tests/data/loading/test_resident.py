"""A cohort in memory is the cohort in the shards, in order, whatever slides make a bag."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mil_jax.data.loading.feature_moments import moments
from mil_jax.data.loading.resident import load_bags
from mil_jax.data.loading.resident_loader import LazyBags, ResidentLoader
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import Provenance, SlideBag


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    slides = [
        SlideBag(
            f"slide-{k}",
            rng.standard_normal((3 + k, 5)).astype(np.float16),
            rng.integers(0, 9, (3 + k, 2)).astype(np.int32),
            Provenance(coordinate_unit="level0_pixels"),
        )
        for k in range(6)
    ]
    write_shards(slides, tmp_path / "shards")
    return Shards.open(tmp_path / "shards"), slides


def test_a_patients_bag_is_its_slides_end_to_end(shards):
    opened, slides = shards
    bags = load_bags(opened, [np.array([4, 1]), np.array([2]), np.array([0, 3, 5])], longest=24)
    bag = jax.jit(lambda: bags.bag(2, 24))()
    members = [slides[number] for number in (0, 3, 5)]
    n = sum(len(slide.features) for slide in members)
    assert int(bag.num_instances) == n
    np.testing.assert_array_equal(bag.features[:n], np.concatenate([slide.features for slide in members]))
    np.testing.assert_array_equal(bag.coords[:n], np.concatenate([slide.coords for slide in members]))
    expected = np.repeat([0, 1, 2], [len(slide.features) for slide in members])
    np.testing.assert_array_equal(bag.slide_index[:n], expected)


def test_the_last_bag_is_read_where_it_lies_also_in_the_longest_bucket(shards):
    """`dynamic_slice` shifts a window that passes the end: rows of zeros behind the last bag prevent it."""
    opened, slides = shards
    bags = load_bags(opened, [np.array([0]), np.array([5])], longest=32)
    bag = jax.jit(lambda: bags.bag(1, 32))()
    np.testing.assert_array_equal(bag.features[:8], slides[5].features)
    assert int(bag.num_instances) == 8


def test_an_accelerator_gets_the_same_bags_and_the_host_holds_a_block_of_them(shards, monkeypatch):
    opened, slides = shards
    members = [np.array([4, 1]), np.array([2]), np.array([0, 3]), np.array([5])]
    longest = max(sum(len(slides[number].features) for number in one) for one in members)
    lazy = LazyBags(opened, members, longest)
    on_a_cpu = ResidentLoader(lazy, jax.device_put)
    expected = dict(on_a_cpu.instances(np.arange(4)))
    held = on_a_cpu.host_bytes
    jax.tree.map(np.testing.assert_array_equal, lazy.on_devices(jax.device_put), lazy.loaded)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    unread = LazyBags(opened, members, longest)
    loader = ResidentLoader(unread, jax.device_put)
    loader.read()
    (window,) = loader.windows(np.zeros((1, 1, 1), np.int32), [(0, np.zeros(1, np.int32), np.ones(1, np.int32))])
    jax.tree.map(np.testing.assert_array_equal, window.bags, lazy.loaded)
    assert ResidentLoader(unread, jax.device_put)._on_devices is window.bags  # brought there once for all engines
    for number, features in loader.instances(np.arange(4)):
        np.testing.assert_array_equal(features, expected[number])
    assert "loaded" not in vars(unread)
    assert loader.host_bytes < held / 2


def test_moments_are_those_of_all_instances_of_the_training_bags(shards):
    opened, slides = shards
    bags = load_bags(opened, [np.array([k]) for k in range(6)], longest=8)
    parts = np.array([[True, False, True, False, False, True], [False, True, False, True, False, False]])
    (mean, _), (deviation, _) = moments(ResidentLoader(bags, jax.device_put).instances(np.arange(6)), parts)
    rows = np.concatenate([slides[k].features for k in (0, 2, 5)]).astype(np.float64)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(deviation, rows.std(axis=0), rtol=1e-10)


def test_a_constant_column_has_deviation_zero_however_large_it_is(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((50, 2)).astype(np.float32)
    features[:, 1] = 12345.678
    write_shards([SlideBag(f"s{k}", features[25 * k : 25 * k + 25]) for k in range(2)], tmp_path / "shards")
    bags = load_bags(Shards.open(tmp_path / "shards"), [np.array([0]), np.array([1])], longest=32)
    features = ResidentLoader(bags, jax.device_put).instances(np.arange(2))
    (mean,), (deviation,) = moments(features, np.ones((1, 2), bool))
    assert deviation[1] == 0.0
    assert mean[1] == pytest.approx(12345.678, rel=1e-6)
