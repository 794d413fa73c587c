"""Optimisers with PyTorch's formulas, as optax transformations whose learning rate and weight decay are given at
each update.

Both are arguments of `update`, not of the constructor: replicas differ in them, and schedules change them, without
recompiling. `adam` and `sgd` add the decay to the gradient (L2), `adamw` and `lookahead_radam` take it off the
parameters. The Lookahead(RAdam) is the one that TransMIL, IBMIL and PathGene use; `optax.lookahead` and
`optax.radam` differ from it (see `_lookahead`, `_radam`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mil_jax.errors import ConfigError
from mil_jax.types import Array, PyTree

NAMES = ("adam", "adamw", "sgd", "lookahead_radam")


@dataclass(frozen=True)
class OptimizerSettings:
    """Everything about an optimiser that is fixed when it is compiled.

    name: one of `NAMES`. b1, b2, eps: of the adaptive ones. momentum, nesterov: of `sgd`. lookahead_steps,
    lookahead_alpha: of `lookahead_radam`. clip_norm: largest global norm of a gradient, 0 = no clipping.
    decay_min_axes: parameters with fewer axes are not decayed; 2 spares biases and norms.
    accumulate_steps: gradients averaged for one update of the parameters; clipping applies to the average.

    Raises ConfigError for values that cannot work.
    """

    name: str = "adam"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    lookahead_steps: int = 6
    lookahead_alpha: float = 0.5
    clip_norm: float = 0.0
    decay_min_axes: int = 0
    accumulate_steps: int = 1

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"optimizer.name={self.name!r} is unknown; choose one of {', '.join(NAMES)}")
        for field in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"optimizer.{field}={getattr(self, field)} must lie in [0, 1)")
        if self.nesterov and not self.momentum:
            raise ConfigError("optimizer.nesterov needs a positive optimizer.momentum")
        if self.eps < 0 or self.clip_norm < 0:
            raise ConfigError("optimizer.eps and optimizer.clip_norm must not be negative")
        if not 0 < self.lookahead_alpha <= 1:
            raise ConfigError(f"optimizer.lookahead_alpha={self.lookahead_alpha} must lie in (0, 1]")
        for field in ("lookahead_steps", "accumulate_steps"):
            if getattr(self, field) < 1:
                raise ConfigError(f"optimizer.{field}={getattr(self, field)} must be at least 1")


def make(settings: OptimizerSettings) -> optax.GradientTransformationExtraArgs:
    """The optimiser as `init(params)` and `update(grads, state, params, lr=..., weight_decay=...) -> updates, state`.

    lr, weight_decay: scalars, possibly traced. The updates are to be added to the parameters
    (`optax.apply_updates`). With `accumulate_steps` = k, k - 1 calls of k return zero updates, and the k-th one uses
    its own lr.
    """
    decay, scale = _add_decay(settings.decay_min_axes), _scale_by_lr()
    if settings.name == "adam":
        chain = [decay, optax.scale_by_adam(settings.b1, settings.b2, settings.eps), scale]
    elif settings.name == "adamw":
        chain = [optax.scale_by_adam(settings.b1, settings.b2, settings.eps), decay, scale]
    elif settings.name == "sgd":
        momentum = [optax.trace(settings.momentum, settings.nesterov)] if settings.momentum else []
        chain = [decay, *momentum, scale]
    else:
        radam = optax.chain(_radam(settings.b1, settings.b2, settings.eps), decay, scale)
        chain = [_lookahead(radam, settings.lookahead_steps, settings.lookahead_alpha)]
    if settings.clip_norm:
        chain.insert(0, _clip_by_global_norm(settings.clip_norm))
    transformation = optax.chain(*chain)
    if settings.accumulate_steps > 1:
        several = optax.MultiSteps(transformation, settings.accumulate_steps)
        return optax.GradientTransformationExtraArgs(several.init, several.update)
    return transformation


def _add_decay(min_axes: int) -> optax.GradientTransformationExtraArgs:
    """updates + weight_decay * params, on every parameter with at least `min_axes` axes (0: biases included)."""

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree, *, weight_decay: Any, **_: Any
    ) -> tuple[PyTree, Any]:
        return jax.tree.map(lambda u, p: u + weight_decay * p if p.ndim >= min_axes else u, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _scale_by_lr() -> optax.GradientTransformationExtraArgs:
    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None, *, lr: Any, **_: Any
    ) -> tuple[PyTree, Any]:
        return jax.tree.map(lambda u: -lr * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """PyTorch's clipping: g * min(1, largest / (norm + 1e-6)); optax's has no 1e-6."""

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, Any]:
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


class _RAdamState(NamedTuple):
    step: Array
    first: PyTree
    second: PyTree


def _radam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Rectified Adam in its early form: the rectified step is taken from an average length of 5 on (optax: above 5 by
    default), before that the bias-corrected momentum; eps is added to the square root of the uncorrected second
    moment.
    """

    def init(params: PyTree) -> _RAdamState:
        return _RAdamState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)
        )

    def update(grads: PyTree, state: _RAdamState, params: PyTree = None) -> tuple[PyTree, _RAdamState]:
        step = state.step + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, grads)
        t = step.astype(jnp.float32)
        unbias = 1.0 / _one_minus_power(b1, t)
        length, longest = _average_length(b2, t), 2.0 / (1.0 - b2) - 1.0
        safe = jnp.maximum(length, 5.0)
        rectification = jnp.sqrt(
            _one_minus_power(b2, t) * ((safe - 4) / (longest - 4)) * ((safe - 2) / safe) * (longest / (longest - 2))
        )
        rectified = length >= 5

        def direction(m: Array, v: Array) -> Array:
            return unbias * jnp.where(rectified, rectification * m / (jnp.sqrt(v) + eps), m)

        return jax.tree.map(direction, first, second), _RAdamState(step, first, second)

    return optax.GradientTransformation(init, update)


def _one_minus_power(b: float, t: Array) -> Array:
    """1 - b^t without the cancellation that float32 has for b near 1."""
    return -jnp.expm1(t * math.log(b)) if b else jnp.ones_like(t)


def _average_length(b2: float, t: Array) -> Array:
    """Length of the moving average, rho_t = 2/(1-b2) - 1 - 2 t b2^t / (1 - b2^t).

    In float32 the difference of two numbers near 2,000 would be off by 1e-4 where rho is 5 and decides. With a =
    -log(b2) and x = a t, b2^t / (1 - b2^t) = 1 / (e^x - 1) = 1/x - 1/2 + r(x)/2, so rho_t = c + t (1 - r(x)) with c
    = 2/(1-b2) - 1 - 2/a small.
    """
    a = -math.log(b2)
    x = a * t
    series = x / 6 - x**3 / 360 + x**5 / 15120 - x**7 / 604800
    large = jnp.maximum(x, 1.0)
    r = jnp.where(x < 1, series, 2 / jnp.expm1(large) - 2 / large + 1)
    return (2 / (1 - b2) - 1 - 2 / a) + t * (1 - r)


class _LookaheadState(NamedTuple):
    step: Array
    slow: PyTree
    fast: PyTree


def _lookahead(
    inner: optax.GradientTransformationExtraArgs, every: int, alpha: float
) -> optax.GradientTransformationExtraArgs:
    """Every k-th step slow += alpha (fast - slow), fast = slow. The slow copy starts as the fast weights at the FIRST
    synchronisation, which therefore changes nothing (`optax.lookahead` starts it at the initial weights).
    """

    def init(params: PyTree) -> _LookaheadState:
        return _LookaheadState(jnp.zeros((), jnp.int32), params, inner.init(params))

    def update(
        grads: PyTree, state: _LookaheadState, params: PyTree, **arguments: Any
    ) -> tuple[PyTree, _LookaheadState]:
        updates, fast = inner.update(grads, state.fast, params, **arguments)
        step = state.step + 1
        synchronise, weight = step % every == 0, jnp.where(step == every, 1.0, alpha)
        moved = jax.tree.map(lambda p, u: p + u, params, updates)
        slow = jax.tree.map(lambda s, f: jnp.where(synchronise, s + weight * (f - s), s), state.slow, moved)
        updates = jax.tree.map(lambda u, s, p: jnp.where(synchronise, s - p, u), updates, slow, params)
        return updates, _LookaheadState(step, slow, fast)

    return optax.GradientTransformationExtraArgs(init, update)
