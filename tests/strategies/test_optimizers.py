"""Optimisers follow PyTorch's formulas; learning rate and decay may be traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mil_jax.errors import ConfigError
from mil_jax.strategies.optimizers import OptimizerSettings, make
from tests.skips import needs

GENERATOR = np.random.default_rng(0)
START = GENERATOR.standard_normal(7).astype(np.float32)
GRADIENTS = GENERATOR.standard_normal((12, 7)).astype(np.float32)
LR = 0.02


def _trajectory(settings, gradients=GRADIENTS, lr=LR, weight_decay=0.1, start=START):
    optimizer = make(settings)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params, lr=lr, weight_decay=weight_decay)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(start)
    return jax.lax.scan(step, (start, optimizer.init(start)), jnp.asarray(gradients))[1]


@pytest.mark.parametrize(
    ("settings", "name", "arguments"),
    [
        (OptimizerSettings("adam"), "Adam", {}),
        (OptimizerSettings("adam", b1=0.5, b2=0.9, eps=1e-3), "Adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
        (OptimizerSettings("adamw"), "AdamW", {}),
        (OptimizerSettings("sgd"), "SGD", {}),
        (OptimizerSettings("sgd", momentum=0.9), "SGD", {"momentum": 0.9}),
        (OptimizerSettings("sgd", momentum=0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_trajectories_are_pytorchs(settings, name, arguments):
    torch = needs("torch")
    weight = torch.nn.Parameter(torch.tensor(START))
    optimizer = getattr(torch.optim, name)([weight], lr=LR, weight_decay=0.1, **arguments)
    expected = []
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        expected.append(weight.detach().numpy().copy())
    np.testing.assert_allclose(_trajectory(settings), expected, rtol=1e-5, atol=1e-6)


def test_clipping_is_pytorchs():
    torch = needs("torch")
    weight = torch.nn.Parameter(torch.tensor(START))
    optimizer, expected = torch.optim.SGD([weight], lr=LR), []
    for gradient in GRADIENTS:
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        optimizer.step()
        expected.append(weight.detach().numpy().copy())
    found = _trajectory(OptimizerSettings("sgd", clip_norm=0.5), weight_decay=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def _lookahead_radam_in_float64(gradients, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, every=6, alpha=0.5):
    p, m, v, slow, path = START.astype(np.float64), 0.0, 0.0, None, []
    longest = 2 / (1 - b2) - 1
    for t, g in enumerate(gradients.astype(np.float64), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        n = longest - 2 * t * b2**t / (1 - b2**t)
        p = p - weight_decay * LR * p
        if n >= 5:
            r = np.sqrt((1 - b2**t) * (n - 4) / (longest - 4) * (n - 2) / n * longest / (longest - 2))
            p = p - LR * r / (1 - b1**t) * m / (np.sqrt(v) + eps)
        else:
            p = p - LR / (1 - b1**t) * m
        if t % every == 0:
            slow = p if slow is None else slow + alpha * (p - slow)
            p = slow
        path.append(p)
    return np.asarray(path)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999])
def test_lookahead_radam_is_the_fields_form(b2):
    gradients = GENERATOR.standard_normal((2500, 7)).astype(np.float32)
    found = _trajectory(OptimizerSettings("lookahead_radam", b2=b2), gradients)
    np.testing.assert_allclose(found, _lookahead_radam_in_float64(gradients, b2=b2), rtol=1e-4, atol=1e-5)


def test_accumulated_gradients_are_averaged_and_counted_as_one_update():
    twice = np.repeat(GRADIENTS, 2, axis=0) + np.tile([[0.3], [-0.3]], (len(GRADIENTS), 1)).astype(np.float32)
    found = _trajectory(OptimizerSettings("adam", accumulate_steps=2), twice)
    np.testing.assert_allclose(found[1::2], _trajectory(OptimizerSettings("adam")), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[2::2], found[1:-1:2])


def test_clipping_applies_to_the_average_of_accumulated_gradients():
    twice = np.repeat(GRADIENTS, 2, axis=0) + np.tile([[9.0], [-9.0]], (len(GRADIENTS), 1)).astype(np.float32)
    settings = OptimizerSettings("sgd", clip_norm=0.5)
    found = _trajectory(OptimizerSettings("sgd", clip_norm=0.5, accumulate_steps=2), twice)
    np.testing.assert_allclose(found[1::2], _trajectory(settings), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lookahead_radam"])
def test_replicas_differ_in_learning_rate_and_decay_under_vmap(name):
    settings = OptimizerSettings(name)
    lrs, decays = jnp.array([0.02, 0.1]), jnp.array([0.0, 0.3])
    together = jax.vmap(lambda lr, decay: _trajectory(settings, lr=lr, weight_decay=decay))(lrs, decays)
    for index in range(2):
        alone = _trajectory(settings, lr=lrs[index], weight_decay=decays[index])
        np.testing.assert_allclose(together[index], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": "lion"}, "choose one of"),
        ({"b2": 1.0}, r"optimizer\.b2"),
        ({"name": "sgd", "nesterov": True}, "needs a positive"),
        ({"clip_norm": -1.0}, "must not be negative"),
        ({"accumulate_steps": 0}, "at least 1"),
        ({"lookahead_alpha": 0.0}, r"lie in \(0, 1\]"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        OptimizerSettings(**fields)
