"""The smooth top-1 SVM against its definition, and the mean over bags."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.losses import cross_entropy, mean_over_bags, smooth_top1_svm

SWITCH = math.log(1000.0)


@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.5, 3.0])
def test_near_scores_get_the_softplus(gap):
    loss = smooth_top1_svm(jnp.array([0.0, gap]), jnp.array(1))
    np.testing.assert_allclose(loss, math.log1p(math.exp(1.0 - gap)), rtol=1e-5)


@pytest.mark.parametrize(("gap", "hinge"), [(SWITCH + 0.01, 0.0), (-SWITCH - 0.01, 1.0 + SWITCH + 0.01)])
def test_far_scores_get_the_hinge(gap, hinge):
    np.testing.assert_allclose(smooth_top1_svm(jnp.array([0.0, gap]), jnp.array(1)), hinge, rtol=1e-5)


def test_the_jump_at_the_switch_is_the_references():
    below, above = (smooth_top1_svm(jnp.array([0.0, SWITCH + step]), jnp.array(1)) for step in (-1e-4, 1e-4))
    np.testing.assert_allclose(below, 0.0027146, rtol=1e-3)
    assert above == 0.0


def test_for_many_classes_the_two_largest_decide():
    scores, alpha = jnp.array([[0.0, 2.0, 9.5], [0.0, 2.0, 1.0]]), 1.0
    found = smooth_top1_svm(scores, jnp.array([0, 0]), alpha)
    np.testing.assert_allclose(found, [10.5, math.log(1 + math.exp(3) + math.exp(2))], rtol=1e-5)


def test_gradients_are_finite_at_extreme_scores():
    scores = jnp.array([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]])
    gradient = jax.grad(lambda s: jnp.sum(smooth_top1_svm(s, jnp.array([0, 0, 0]))))(scores)
    assert np.isfinite(gradient).all()


def test_cross_entropy_is_the_negative_log_probability():
    np.testing.assert_allclose(cross_entropy(jnp.array([1.0, 2.0]), jnp.array(0)), math.log(1 + math.e), rtol=1e-6)


def test_the_mean_counts_only_bags_that_are_present():
    loss = mean_over_bags(jnp.array([1.0, 3.0, 50.0]), jnp.array([True, True, False]), jnp.array([2.0, 1.0, 0.0]))
    np.testing.assert_allclose(loss, 2.5)


def test_the_mean_without_bags_is_zero():
    assert mean_over_bags(jnp.ones(2), jnp.zeros(2, bool), jnp.zeros(2)) == 0.0
