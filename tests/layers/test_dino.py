"""The pieces of a DINO step, beyond what the parity cases say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers import dino


def test_the_teacher_gets_no_gradient_and_a_crop_is_not_compared_with_itself():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(count, 2, 5)), jnp.float32) for count in (2, 2))
    to_teacher = jax.grad(dino.dino_loss, argnums=1)(student, teacher, jnp.zeros(5), 0.04, 0.1)
    assert not np.asarray(to_teacher).any()
    wanted = jax.nn.softmax(teacher / 0.04)
    found = jax.nn.log_softmax(student / 0.1)
    crossed = -jnp.mean(jnp.sum(wanted * found[::-1], axis=-1))
    np.testing.assert_allclose(dino.dino_loss(student, teacher, jnp.zeros(5), 0.04, 0.1), crossed, rtol=1e-5)


def test_each_gradient_is_clipped_by_itself():
    clipped = dino.clipped_each({"long": jnp.full(4, 3.0), "short": jnp.full(4, 0.1)}, 1.0)
    np.testing.assert_allclose(jnp.linalg.norm(clipped["long"]), 1.0, rtol=1e-5)
    np.testing.assert_allclose(clipped["short"], 0.1, rtol=1e-6)


def test_schedules_begin_and_end_where_they_should():
    values = dino.cosine_schedule(1.0, 0.1, epochs=4, steps=5, warmup_epochs=1)
    assert len(values) == 20
    np.testing.assert_allclose(values[[0, 4, 5]], [0.0, 1.0, 1.0])
    assert 0.1 < values[-1] < 0.12
    np.testing.assert_allclose(dino.teacher_temperatures(0.04, 0.07, 3, 5), [0.04, 0.055, 0.07, 0.07, 0.07])
