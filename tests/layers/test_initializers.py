"""Parameters are drawn as PyTorch draws them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mil_jax.layers.initializers import AffineParameters


def _draw(initializer: str, *axes: int, features: int = 300) -> tuple[np.ndarray, np.ndarray]:
    params = AffineParameters(features, initializer).init(jax.random.key(0), *axes)["params"]
    return np.asarray(params["kernel"]), np.asarray(params["bias"])


@pytest.mark.parametrize("axes", [(200,), (5, 5, 8)])
def test_torch_default_is_uniform_within_one_over_root_fan_in_for_weight_and_bias(axes):
    kernel, bias = _draw("torch", *axes)
    bound = 1 / np.sqrt(np.prod(axes))
    for values in (kernel, bias):
        assert 0.97 * bound < np.abs(values).max() <= bound
        assert abs(values.mean()) < 0.1 * bound


def test_xavier_normal_has_its_deviation_untruncated_and_no_bias():
    kernel, bias = _draw("xavier_normal", 200)
    std = np.sqrt(2 / 500)
    assert abs(kernel.std() / std - 1) < 0.01
    assert np.abs(kernel).max() > 3 * std
    assert not bias.any()


def test_kaiming_uniform_is_that_of_relu_and_has_no_bias():
    kernel, bias = _draw("kaiming_uniform", 200)
    bound = np.sqrt(6 / 200)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert not bias.any()


def test_a_layer_without_bias_has_none():
    params = AffineParameters(3, use_bias=False).init(jax.random.key(0), 4)["params"]
    assert set(params) == {"kernel"}
