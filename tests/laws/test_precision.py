"""`train.precision=bfloat16` rounds the forward and backward pass alone: the state stays float32, and a step stays close."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification
from tests.laws import law

TASK = Classification(("a", "b"))
SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"feature_dim": 32, "attention_dim": 16},
    "mean_pooling": {"feature_dim": 32},
    "max_pooling": {"feature_dim": 32},
    "clam_sb": {"feature_dim": 32, "attention_dim": 16, "num_sampled": 2},
    "dsmil": {"query_dim": 16},
    "transmil": {"feature_dim": 32, "num_heads": 4, "num_landmarks": 8, "residual_kernel": 5},
    "rrt": {"feature_dim": 32, "num_heads": 4, "cross_region_heads": 4, "region_num": 2, "attention_dim": 16},
}
LARGEST_DIFFERENCE = 0.05  # of the logits, which are of order 1; one rounding to bfloat16 is 0.004


def supervised(name: str, precision: str) -> Supervised:
    fields = {key: 0.0 for key in ("dropout", "attention_dropout") if name not in ("dsmil",)}
    known = set(aggregators.create(name, 2).__dataclass_fields__)
    module = aggregators.create(name, 2, **{k: v for k, v in fields.items() if k in known}, **SMALL[name])
    return Supervised(
        module, TASK, optimizers.make(optimizers.OptimizerSettings("sgd")), Schedule(), precision=precision
    )


@pytest.mark.parametrize("name", ["abmil", *(pytest.param(name, marks=pytest.mark.full) for name in SMALL)])
def test_a_step_in_bfloat16_is_close_and_leaves_a_float32_state(name):
    bag = law.make_bag(0, 19, law.SMALL_BUCKET * 2, (24,), 0.0)
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
    hyper = {"optimizer.lr": jnp.float32(1e-2), "optimizer.weight_decay": jnp.float32(0.0)}
    results = {}
    for precision in ("float32", "bfloat16"):
        the_strategy = supervised(name, precision)
        state = jax.jit(lambda key, s=the_strategy: s.init(key, bag, hyper, {}, None))(jax.random.key(0))

        def step(state: Any, the_strategy: Supervised = the_strategy) -> Any:
            state, metrics = the_strategy.step(state, batch, {"lr": jnp.float32(1e-2)}, jax.random.key(1))
            return state, metrics, the_strategy.predict(state, bag).logits

        assert ("bf16" in str(jax.make_jaxpr(step)(state))) == (precision == "bfloat16")
        results[precision] = jax.jit(step)(state)
        assert {x.dtype for x in jax.tree.leaves(results[precision][0].params)} == {jnp.dtype(jnp.float32)}
    exact, rounded = results["float32"], results["bfloat16"]
    assert rounded[2].dtype == jnp.float32
    np.testing.assert_allclose(rounded[2], exact[2], atol=LARGEST_DIFFERENCE * max(1.0, np.abs(exact[2]).max()))
    np.testing.assert_allclose(rounded[1]["loss"], exact[1]["loss"], atol=LARGEST_DIFFERENCE * 2)
    assert np.abs(np.asarray(rounded[2]) - np.asarray(exact[2])).max() > 0
