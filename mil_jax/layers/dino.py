"""DINO, self-distillation without labels (Caron et al. 2021), as HIPT pretrains both levels of its encoder: what a step is made of.

Student s and teacher t see crops v = 0..V-1, the teacher only the first two. Its outputs are centred and sharpened, and the student
predicts them from every other crop: L = mean over pairs (i in {0, 1}, v != i) of -softmax((t_i - c) / tau_t) . log softmax(s_v / tau_s).
The teacher is a moving average of the student (`layers/moving_average.py`), the centre c one of the teacher's outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers.initializers import Affine
from mil_jax.layers.moving_average import ema_update
from mil_jax.types import Array, PyTree

STUDENT_TEMPERATURE = 0.1


class Head(NamedTuple):
    """Projection head. mlp: layers with a GELU between them. direction: [E, K]; gain: [K], at 1 and not trained."""

    mlp: tuple[Affine, ...]
    direction: Array
    gain: Array

    def __call__(self, x: Array) -> Array:
        """x [..., C] -> [..., K]: the MLP, length 1, and a layer whose columns have length `gain`."""
        for number, layer in enumerate(self.mlp):
            x = layer(x if number == 0 else jax.nn.gelu(x, approximate=False))
        x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        lengths = jnp.linalg.norm(self.direction, axis=0)
        return x @ (self.direction / lengths * jax.lax.stop_gradient(self.gain))


def dino_loss(
    student: Array, teacher: Array, center: Array, teacher_temperature: Array | float, student_temperature: float
) -> Array:
    """Loss of the student's outputs [V, B, K] against the teacher's [2, B, K], which get no gradient. center: [K]."""
    wanted = jax.lax.stop_gradient(jax.nn.softmax((teacher - center) / teacher_temperature))
    found = jax.nn.log_softmax(student / student_temperature)
    pairs = -jnp.einsum("ibk,vbk->iv", wanted, found) / student.shape[1]
    other = ~jnp.eye(len(teacher), len(student), dtype=bool)
    return jnp.sum(jnp.where(other, pairs, 0.0)) / jnp.sum(other)


def updated_center(center: Array, teacher: Array, momentum: float = 0.9) -> Array:
    """The centre [K] for the next step, from this step's teacher outputs [2, B, K] (of all devices)."""
    return ema_update(center, jnp.mean(teacher, axis=(0, 1)), 1.0 - momentum)


def clipped_each(gradients: PyTree, largest: float) -> PyTree:
    """Gradients of which none, taken by itself, is longer than `largest`."""

    def clip(gradient: Array) -> Array:
        return gradient * jnp.minimum(1.0, largest / (jnp.linalg.norm(gradient.ravel()) + 1e-6))

    return jax.tree.map(clip, gradients)


def teacher_temperatures(first: float, last: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """float64 [epochs]: a linear rise over the first epochs, then constant."""
    warmup = min(warmup_epochs, epochs)
    return np.concatenate([np.linspace(first, last, warmup_epochs)[:warmup], np.full(epochs - warmup, last)])


def cosine_schedule(
    base: float, final: float, epochs: int, steps: int, warmup_epochs: int = 0, start: float = 0.0
) -> np.ndarray:
    """float64 [epochs * steps]: a linear rise from `start` to `base`, both included, then half a cosine towards `final`."""
    warmup = warmup_epochs * steps
    rest = np.arange(epochs * steps - warmup)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / max(len(rest), 1)))
    return np.concatenate([np.linspace(start, base, warmup), fall])
