"""Losses on class scores that methods add to the task's: the smooth top-1 SVM of Berrada et al. 2018, cross entropy, the
consistency of MHIM-MIL, and the mean over the bags of a step.

The SVM is written in closed form: for k = 1 the elementary symmetric polynomials of the paper reduce to a log-sum-exp.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mil_jax.types import Array


def smooth_top1_svm(
    scores: Array, labels: Array, alpha: float = 1.0, tau: float = 1.0, threshold: float = 1000.0
) -> Array:
    """Per row: scores [..., C], labels int [...] -> [...].

    With u_j = s_j + alpha [j != y] - s_y the loss is tau log sum_j exp(u_j / tau), and where the two largest scores lie at least
    tau log(threshold) apart the hinge max_j u_j. The loss jumps at that point, as in the reference.
    """
    labels = labels[..., None]
    others = jnp.arange(scores.shape[-1]) != labels  # [..., C]
    u = scores + alpha * others - jnp.take_along_axis(scores, labels, axis=-1)
    smooth = tau * jax.nn.logsumexp(u / tau, axis=-1)
    best = jax.lax.top_k(jax.lax.stop_gradient(scores), 2)[0]
    far = best[..., 0] - best[..., 1] >= tau * math.log(threshold)
    return jnp.where(far, jnp.max(u, axis=-1), smooth)


def cross_entropy(scores: Array, labels: Array) -> Array:
    """Per row: scores [..., C], labels int [...] -> [...]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), labels[..., None], axis=-1)[..., 0]


def mean_over_bags(per_bag: Array, present: Array, weights: Array) -> Array:
    """Mean of weight * loss over the bags present: [B], [B] bool, [B] -> scalar; 0 when there is none.

    As `tasks.classification.Classification.loss` takes it. `per_bag` must be finite in empty places.
    """
    return jnp.sum(jnp.where(present, weights * per_bag, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def feature_consistency(
    student: Array, teacher: Array, student_temperature: float | Array = 1.0, teacher_temperature: float | Array = 0.1
) -> Array:
    """Cross entropy of softmaxes over the FEATURES of two embeddings [..., E], the teacher's without gradient: mean over [...].

    -sum_d softmax(teacher / teacher_temperature)_d log softmax(student / student_temperature)_d (MHIM-MIL, eq. 6), in float32.
    """
    target = jax.nn.softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32) / teacher_temperature, axis=-1)
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / student_temperature, axis=-1)
    return jnp.mean(-jnp.sum(target * log_p, axis=-1))
