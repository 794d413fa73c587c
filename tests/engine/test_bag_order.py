"""The order of an epoch: from the split table alone, near a uniform shuffle, every bag once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.data.buckets import fit_ladder
from mil_jax.engine.bag_order import MOST_SLOTS, BagOrder, portions
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


def test_an_order_that_was_drawn_ahead_is_that_of_those_who_go_on(monkeypatch):
    order, _ = _order()
    replicas, everyone = [Replica(k, s) for s in range(3) for k in range(4)], np.ones(12, bool)
    fewer = np.arange(12) % 3 > 0
    expected = order.epoch(replicas, fewer, epoch=4)
    order.draw_ahead(replicas, everyone, epoch=4)
    monkeypatch.setattr(order, "_draw", None)  # it is not drawn again
    found = order.epoch(replicas, fewer, epoch=4)
    np.testing.assert_array_equal(found.bags, expected.bags)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert len(found.dispatches) == len(expected.dispatches)
    for mine, theirs in zip(found.dispatches, expected.dispatches):
        np.testing.assert_array_equal(np.concatenate([mine[1:]]), np.concatenate([theirs[1:]]))
        assert mine[0] == theirs[0]


def test_an_order_that_was_drawn_ahead_for_others_is_drawn_anew():
    order, _ = _order()
    replicas, everyone = [Replica(k, 0) for k in range(4)], np.ones(4, bool)
    expected = order.epoch(replicas, everyone, epoch=4).bags
    order.draw_ahead(replicas, np.arange(4) > 0, epoch=4)
    np.testing.assert_array_equal(order.epoch(replicas, everyone, epoch=4).bags, expected)
    np.testing.assert_array_equal(
        order.epoch(list(replicas), everyone, epoch=5).bags, _order()[0].epoch(replicas, everyone, 5).bags
    )


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


def test_the_runs_of_a_fold_share_its_order_and_folds_and_epochs_do_not():
    order, training = _order(order="fold")
    company = [Replica(k, s) for s in range(2) for k in range(4)]
    epoch = order.epoch(company, np.ones(len(company), bool), epoch=7)
    np.testing.assert_array_equal(epoch.bags[:4], epoch.bags[4:])
    for fold in range(4):
        assert sorted(epoch.bags[fold][epoch.bags[fold] >= 0]) == np.flatnonzero(training[fold]).tolist()
    alone = order.epoch([company[6]], np.ones(1, bool), epoch=7)
    np.testing.assert_array_equal(epoch.bags[6], alone.bags[0])
    assert not np.array_equal(alone.bags, order.epoch([company[6]], np.ones(1, bool), epoch=8).bags)
    both = np.flatnonzero(training[0] & training[1])
    assert not np.array_equal(*(one[np.isin(one, both)] for one in epoch.bags[:2, :, 0]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), num_bags=st.integers(5, 400), buckets=st.integers(1, 8), epoch=st.integers(0, 3))
def test_slots_come_in_blocks_of_their_bucket_and_few_are_short(seed, num_bags, buckets, epoch):
    order, _ = _order(num_bags, buckets=buckets, seed=seed)
    slots = order._slots(epoch)
    np.testing.assert_array_equal(np.bincount(slots, minlength=buckets), order.slot_counts)
    assert (order.block_slots >= 1).all()
    assert order.block_slots.max() <= max(MOST_SLOTS, 1)
    edges = np.flatnonzero(np.diff(slots, prepend=-1, append=-1))
    for bucket in range(buckets):
        own = np.diff(edges)[slots[edges[:-1]] == bucket]
        assert (own % order.block_slots[bucket] != 0).sum() <= 1, "all blocks but the last are whole"


def test_a_device_is_sent_an_epoch_of_400_bags_in_at_most_45_dispatches():
    """25 runs over bags of lognormal sizes, as slides have: what a program makes at once, where each slot was sent nearly alone."""
    sent: dict[bool, list[int]] = {True: [], False: []}
    idle: list[float] = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = np.maximum(1, np.exp(rng.normal(np.log(10_000), 0.56, 400))).astype(int)
        ladder = fit_ladder(sizes)
        fold, selection = rng.permutation(400) % 5, rng.permutation(400) % 6 == 0
        training = (fold != np.arange(5)[:, None]) & ~selection
        replicas = [Replica(k, s) for s in range(5) for k in range(5)]
        for blocks in sent:
            order = BagOrder(training, ladder.bucket(sizes), len(ladder.lengths), blocks=blocks)
            epoch = order.epoch(replicas, np.ones(25, bool), 0)
            calls = [
                (order.block_slots[bucket], ends)
                for bucket, lo, hi in epoch.dispatches
                for ends in portions(lo, hi, order.block_slots[bucket])
            ]
            np.testing.assert_array_equal(sum(ends[:, 1] - ends[:, 0] for _, ends in calls), epoch.counts)
            sent[blocks].append(len(calls))
            idle += [sum(steps for steps, _ in calls) / order.max_steps - 1] * blocks
    assert max(sent[True]) <= 45
    assert min(sent[False]) > 200, "the cohort does not show the case"
    assert np.mean(idle) < 0.03, "steps that no run makes"


def test_the_order_of_runs_begun_before_there_were_blocks_is_the_one_they_had():
    order, _ = _order(num_bags=400, blocks=False)
    slots = np.repeat(np.arange(3), order.slot_counts)
    np.random.default_rng([0, 5]).shuffle(slots)
    np.testing.assert_array_equal(order._slots(5), slots)
    assert not np.array_equal(_order(num_bags=400)[0]._slots(5), slots)
