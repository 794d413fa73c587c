"""Runs are split so that each part's bags fit into a window, and nothing else about them changes."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.data.loading.windows import bags_wanted, split_dispatches

LENGTHS = (8, 24)


def epoch(seed: int, batch_size: int):
    """Random order of 6 replicas over 30 bags in two buckets: (bags, runs, sizes)."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([rng.integers(1, 9, 15), rng.integers(9, 25, 15)])
    bags, runs, at = np.full((6, 40, batch_size), -1), [], np.zeros(6, np.int64)
    for _ in range(6):
        bucket = int(rng.integers(2))
        steps = rng.integers(0, 6, 6)
        for r in range(6):
            drawn = rng.integers(0, 15 * (bucket + 1), (steps[r], batch_size))
            drawn[:, 1:][rng.random((steps[r], batch_size - 1)) < 0.2] = -1
            bags[r, at[r] : at[r] + steps[r]] = drawn
        runs.append((bucket, at.copy(), at + steps))
        at = at + steps
    return bags, runs, sizes


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("steps_in_window", [1, 2, 50])
def test_every_step_is_made_once_in_order_with_its_bags_in_the_window(batch_size, steps_in_window):
    for seed in range(5):
        bags, runs, sizes = epoch(seed, batch_size)
        rows = [steps_in_window * batch_size * length for length in LENGTHS]
        loads = [*split_dispatches(bags, runs, sizes, LENGTHS, rows)]
        assert sum(load.ends_dispatch for load in loads) == sum((hi > lo).any() for _, lo, hi in runs)
        at = runs[0][1]
        for load in loads:
            np.testing.assert_array_equal(load.lo, at)
            at = load.hi
            length, taken = LENGTHS[load.bucket], np.zeros(rows[load.bucket], np.int64)
            for bag, offset in load.offsets.items():
                assert offset + length <= rows[load.bucket], "a slice past the end would be shifted"
                taken[offset : offset + sizes[bag]] += 1
            assert taken.max() <= 1, "bags overlap"
            read = {int(b) for r in range(6) for b in bags[r, load.lo[r] : load.hi[r]].ravel() if b >= 0}
            assert read == set(load.offsets), "exactly the bags that are read"
        np.testing.assert_array_equal(at, runs[-1][2])


def test_a_wide_window_splits_nothing():
    bags, runs, sizes = epoch(0, 1)
    loads = [*split_dispatches(bags, runs, sizes, LENGTHS, [10_000, 10_000])]
    assert len(loads) == len(runs)


def test_a_window_should_hold_the_fullest_slot():
    bags = np.array([[[0], [1], [2]], [[0], [3], [2]]])
    runs = [(0, np.array([0, 0]), np.array([2, 2])), (2, np.array([2, 2]), np.array([3, 3]))]
    assert bags_wanted(bags, runs, 4).tolist() == [3, 2, 1, 2]
