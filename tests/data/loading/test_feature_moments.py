"""What features look like as a whole: distances between cohorts, and copies among bags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mil_jax.data.loading.feature_moments import bag_moments, cohort_moments, distance, near_duplicates
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.interop.slide_bag import SlideBag


def shards_of(features: list[np.ndarray], folder: Path) -> Shards:
    write_shards((SlideBag(f"s{number}", x) for number, x in enumerate(features)), folder)
    return Shards.open(folder)


def moments_of(features: list[np.ndarray], folder: Path):
    return bag_moments(shards_of(features, folder), [np.array([number]) for number in range(len(features))])


def draw(bags: int, seed: int, size: int = 40) -> list[np.ndarray]:
    return [*np.random.default_rng(seed).standard_normal((bags, size, 8)).astype(np.float32)]


def test_moments_of_a_bag_are_those_of_its_instances(tmp_path):
    features = draw(3, 0)
    moments = moments_of(features, tmp_path / "s")
    np.testing.assert_allclose(moments.means, [x.mean(axis=0) for x in features], atol=1e-6)
    np.testing.assert_allclose(moments.variances, [x.var(axis=0) for x in features], atol=1e-6)


def test_a_large_bag_is_read_in_blocks_that_lie_evenly_in_it(tmp_path):
    ramp = np.tile(np.arange(4000, dtype=np.float32)[:, None], (1, 2))
    assert moments_of([ramp], tmp_path / "s").means[0, 0] == pytest.approx(1999.5)


def test_a_cohort_of_the_same_kind_is_as_far_as_chance_has_it_and_a_shifted_one_farther(tmp_path):
    training = cohort_moments(moments_of(draw(60, 1), tmp_path / "a"))
    same = distance(training, cohort_moments(moments_of(draw(60, 2), tmp_path / "b")))
    shifted = distance(training, cohort_moments(moments_of([x * 2 + 1 for x in draw(60, 3)], tmp_path / "c")))
    assert same.shift == pytest.approx(same.expected, rel=0.6)
    assert shifted.shift == pytest.approx(1.0, rel=0.1)
    assert shifted.spread == pytest.approx(2.0, rel=0.05)


def test_copies_are_found_in_another_precision_and_others_are_not(tmp_path):
    features = draw(12, 4)
    features.append(features[3].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(near_duplicates(moments_of(features, tmp_path / "s")), [[3, 12]])
