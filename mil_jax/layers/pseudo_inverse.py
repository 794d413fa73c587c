"""The iterated pseudo-inverse of Nystrom attention (Xiong et al. 2021, eq. 14), applied to a thin matrix, with its gradient by hand.

The reference iterates Z <- Z r(a Z) from Z = c a', with r(X) = (13 - 15 X + 7 X^2 - X^3) / 4 and 1 / c the largest column sum over
all heads (row sums are 1). All X = a Z are polynomials in c a a': symmetric, and they commute. So X <- X r(X) is iterated alone and
the r(X) are applied to w, which is thin. X r(X) = (b^2 + 27/8 X - T^2) / 4 with T = X^2 - 7/2 X + b and b = 11/8 takes two
squarings, and as gradients stay symmetric, one product each in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mil_jax.layers import backend
from mil_jax.types import Array

_SHIFT = 1.375  # b
_VECTORS = 4  # columns of w up to which the last power of X is applied as products with w instead of being built


def apply_pseudo_inverse(a: Array, w: Array, iterations: int, *, transposed: bool = False) -> Array:
    """Z w, or Z' w, for the iterated pseudo-inverse Z of softmax matrices a [heads, m, m] and w [heads, m, k], in float32.

    About 22 m^3 products with the gradient for a w of few columns, 33 for k = m / 4; 72 as the reference computes it.
    """
    a, w = a.astype(jnp.float32), w.astype(jnp.float32)
    scale = 1.0 / jnp.max(jnp.sum(a, axis=-2))
    x = scale * _gram(a)
    w = product(a, w) if transposed else w
    factors = min(iterations, 2 if w.shape[-1] <= _VECTORS else 1)  # of the form r(X), applied to w alone
    x, w = _iterate(x, w, iterations - factors)
    w = _apply_factors(x, w, factors)
    return scale * (w if transposed else product(a.mT, w))


def product(a: Array, b: Array) -> Array:
    """a b in full float32: the pseudo-inverse does not bear TF32 or bfloat16 products.

    A GPU with TF32 takes three such products for each, of what its matrix units hold of a factor and of the rest: as exact as float32 but
    for the product of both rests, about 2^-22 of the result.
    """
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if backend.multiplies_tf32() else lax.Precision.HIGHEST
    return jnp.matmul(a, b, precision=precision)


@jax.custom_vjp
def _gram(a: Array) -> Array:
    """a a' of matrices [..., m, m]; its cotangent is symmetric."""
    return product(a, a.mT)


_gram.defvjp(lambda a: (_gram(a), a), lambda a, g: (2.0 * product(g, a),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _iterate(x: Array, w: Array, steps: int) -> tuple[Array, Array]:
    """`steps` times (X, w) <- (X r(X), r(X) w) for symmetric X [heads, m, m] and w [heads, m, k]; cotangents of X are symmetric."""
    return _iterate_forward(x, w, steps)[0]


def _iterate_forward(x: Array, w: Array, steps: int) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    def iterate(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        x, w = carry
        square, xw = product(x, x), product(x, w)
        shifted = _shifted(square, x)
        new_w = 0.25 * (13.0 * w - 15.0 * xw + product(square, 7.0 * w - xw))
        new_x = 0.25 * (_diagonal(x, _SHIFT**2) + 3.375 * x - product(shifted, shifted))
        return (new_x, new_w), (x, square, w, xw)

    if backend.is_cpu():  # a loop, not its steps one after another: as fast, and compiled in 1.5 s less
        return lax.scan(iterate, (x, w), length=steps)
    carry, kept = (x, w), []
    for _ in range(steps):  # what is kept for the gradient stays where it is, where a loop would gather it
        carry, saved = iterate(carry, None)
        kept.append(saved)
    return carry, tuple(kept)


def _iterate_backward(steps: int, saved: tuple[Any, ...], cotangents: tuple[Array, Array]) -> tuple[Array, Array]:
    del steps

    def iterate(cotangents: tuple[Array, Array], saved: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        g_x, g_w = cotangents
        x, square, w, xw = saved
        g_square = -0.25 * product(g_x, _shifted(square, x))  # with its transpose that of T, so of X^2
        v = 7.0 * w - xw
        g_v = 0.25 * product(square, g_w)
        g_xw = -3.75 * g_w - g_v
        g_square = _sum_with_transpose(g_square + 0.125 * product(g_w, v.mT))
        # X in T counts -7/2 times as X^2 does; the part of g_square that came from v is taken out again
        g_thin = product(jnp.concatenate([g_xw, 0.875 * g_w], axis=-1), jnp.concatenate([w, v], axis=-1).mT)
        g_x = _sum_with_transpose(product(g_square, x) + 0.5 * g_thin) - 3.5 * g_square + 0.84375 * g_x
        g_w = 3.25 * g_w + 7.0 * g_v + product(x, g_xw)
        return (g_x, g_w), None

    if backend.is_cpu():
        return lax.scan(iterate, cotangents, saved, reverse=True)[0]
    for kept in reversed(saved):
        cotangents, _ = iterate(cotangents, kept)
    return cotangents


_iterate.defvjp(_iterate_forward, _iterate_backward)


def _shifted(square: Array, x: Array) -> Array:
    return square - 3.5 * x + _diagonal(x, _SHIFT)


def _diagonal(like: Array, value: float) -> Array:
    return value * jnp.eye(like.shape[-1], dtype=like.dtype)


def _sum_with_transpose(x: Array) -> Array:
    return x + x.mT


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _apply_factors(x: Array, w: Array, factors: int) -> Array:
    """r(X) w, or r(X r(X)) r(X) w where factors = 2, by products with w alone."""
    return _polynomial(lambda v: product(x, v), w, factors)


def _polynomial(times: Callable[[Array], Array], w: Array, factors: int) -> Array:
    def factor(times: Callable[[Array], Array], v: Array) -> Array:
        return 0.25 * (13.0 * v - times(15.0 * v - times(7.0 * v - times(v))))

    for _ in range(factors):
        w, times = factor(times, w), functools.partial(lambda times, v: times(factor(times, v)), times)
    return w


def _apply_factors_forward(x: Array, w: Array, factors: int) -> tuple[Array, tuple[Array, Array]]:
    return _apply_factors(x, w, factors), (x, w)


def _apply_factors_backward(factors: int, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    """The gradient with respect to X as one product of all (cotangent, argument) pairs of X's products, made symmetric."""
    x, w = residuals
    arguments: list[Array] = []

    def with_probes(w: Array, probes: list[Array]) -> tuple[Array, list[Array]]:
        arguments.clear()

        def times(v: Array) -> Array:
            arguments.append(v)
            return product(x, v) + probes[len(arguments) - 1]

        return _polynomial(times, w, factors), list(arguments)

    probes = [jnp.zeros_like(w)] * (4**factors - 1)
    _, pull, inputs = jax.vjp(with_probes, w, probes, has_aux=True)
    g_w, g_products = pull(cotangent)
    half = 0.5 * product(jnp.concatenate(g_products, axis=-1), jnp.concatenate(inputs, axis=-1).mT)
    return _sum_with_transpose(half), g_w


_apply_factors.defvjp(_apply_factors_forward, _apply_factors_backward)
