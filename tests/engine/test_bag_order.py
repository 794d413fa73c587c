"""The order of an epoch: from the split table alone, near a uniform shuffle, every bag once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.engine.bag_order import BagOrder
from mil_jax.engine.plan import Replica


def _order(num_bags=40, folds=4, buckets=3, seed=0, **options):
    rng = np.random.default_rng(seed)
    fold = rng.integers(0, folds, num_bags)
    training = np.stack([fold != k for k in range(folds)])
    return BagOrder(training, rng.integers(0, buckets, num_bags), buckets, **options), training


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 4), dispatch=st.integers(1, 50))
def test_every_training_bag_is_seen_once_an_epoch_and_no_other(seed, batch_size, dispatch):
    order, training = _order(seed=seed, batch_size=batch_size, steps_per_dispatch=dispatch)
    replicas = [Replica(fold=k, seed=1) for k in range(len(training))]
    epoch = order.epoch(replicas, np.ones(len(replicas), bool), epoch=2)
    for r, part in enumerate(training):
        seen = epoch.bags[r][epoch.bags[r] >= 0]
        assert sorted(seen) == np.flatnonzero(part).tolist()


def test_a_step_trains_bags_of_the_bucket_it_is_dispatched_in_or_of_a_smaller_one():
    order, training = _order(batch_size=2)
    epoch = order.epoch([Replica(0, 0), Replica(1, 5)], np.ones(2, bool), epoch=0)
    trained = 0
    for bucket, lo, hi in epoch.dispatches:
        for r in range(2):
            numbers = epoch.bags[r, lo[r] : hi[r]]
            numbers = numbers[numbers >= 0]
            assert (order.bucket[numbers] <= bucket).all()
            trained += len(numbers)
    assert trained == training[:2].sum()


def test_a_replica_has_the_same_order_alone_and_in_company():
    order, _ = _order()
    company = [Replica(k, s) for s in range(3) for k in range(4)]
    together = order.epoch(company, np.ones(len(company), bool), epoch=7)
    alone = order.epoch([company[6]], np.ones(1, bool), epoch=7)
    np.testing.assert_array_equal(together.bags[6], alone.bags[0])


def test_replicas_that_differ_only_in_settings_share_their_order():
    order, _ = _order()
    pair = [Replica(0, 0, overrides=(("optimizer.lr", lr),)) for lr in (1e-3, 1e-4)]
    epoch = order.epoch(pair, np.ones(2, bool), epoch=0)
    np.testing.assert_array_equal(epoch.bags[0], epoch.bags[1])


def test_seeds_folds_and_epochs_have_their_own_orders():
    order, _ = _order()
    bags = order.epoch([Replica(0, 0), Replica(0, 1)], np.ones(2, bool), epoch=0).bags
    later = order.epoch([Replica(0, 0)], np.ones(1, bool), epoch=1).bags
    assert not np.array_equal(bags[0], bags[1])
    assert not np.array_equal(bags[0], later[0])


def test_the_runs_of_an_epoch_make_every_step_once_and_in_order():
    order, _ = _order(steps_per_dispatch=5)
    epoch = order.epoch([Replica(0, 0), Replica(3, 0)], np.array([True, True]), epoch=0)
    done = np.zeros(2, int)
    for _, lo, hi in epoch.dispatches:
        np.testing.assert_array_equal(lo, done)
        done = hi
    np.testing.assert_array_equal(done, epoch.counts)


def test_a_stopped_replica_has_no_steps():
    order, _ = _order()
    epoch = order.epoch([Replica(0, 0), Replica(1, 0)], np.array([False, True]), epoch=0)
    assert epoch.counts[0] == 0
    assert epoch.counts[1] > 0


def test_size_buckets_are_mixed_over_the_epoch():
    """Long runs of one bucket would be a bias where bag size correlates with the label."""
    order, _ = _order(num_bags=400, folds=2, buckets=2, steps_per_dispatch=64)
    epoch = order.epoch([Replica(0, 0)], np.ones(1, bool), epoch=0)
    buckets = order.bucket[epoch.bags[0, : epoch.counts[0], 0]]
    half = len(buckets) // 2
    assert abs(buckets[:half].mean() - buckets[half:].mean()) < 0.2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_balanced_sampling_draws_by_weight_and_finds_slots(batch_size):
    order, training = _order(num_bags=200, folds=2, buckets=2)
    weights = np.where(np.arange(200) < 20, 9.0, 1.0) * training
    balanced = BagOrder(training, order.bucket, 2, sampling=weights, batch_size=batch_size)
    rare, drawn = 0, 0
    for epoch in range(20):
        bags = balanced.epoch([Replica(0, 0)], np.ones(1, bool), epoch).bags[0]
        bags = bags[bags >= 0]
        assert training[0][bags].all()
        rare, drawn = rare + (bags < 20).sum(), drawn + len(bags)
    assert drawn == 20 * training[0].sum()
    assert abs(rare / drawn - weights[0, :20].sum() / weights[0].sum()) < 0.05


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_shared_order_shows_all_replicas_the_same_bags_at_the_same_time(batch_size):
    order, training = _order(batch_size=batch_size, shared=True)
    replicas = [Replica(fold=k, seed=s) for s in range(2) for k in range(len(training))]
    epoch = order.epoch(replicas, np.ones(len(replicas), bool), epoch=3)
    for r, replica in enumerate(replicas):
        seen = epoch.bags[r][epoch.bags[r] >= 0]
        assert sorted(seen) == np.flatnonzero(training[replica.fold]).tolist()
    assert len(epoch.dispatches) >= 3
    for _, lo, hi in epoch.dispatches:
        together = [set(epoch.bags[r, lo[r] : hi[r]].ravel()) - {-1} for r in range(len(replicas))]
        everyone = set().union(*together)
        for r, replica in enumerate(replicas):
            assert together[r] == {bag for bag in everyone if training[replica.fold][bag]}


def test_a_shared_order_is_the_same_alone_and_another_in_the_next_epoch():
    order, _ = _order(shared=True)
    company = [Replica(k, s) for s in range(2) for k in range(4)]
    together = order.epoch(company, np.ones(len(company), bool), epoch=7)
    alone = order.epoch([company[6]], np.ones(1, bool), epoch=7)
    np.testing.assert_array_equal(together.bags[6], alone.bags[0])
    later = order.epoch([company[6]], np.ones(1, bool), epoch=8)
    assert not np.array_equal(alone.bags, later.bags)
