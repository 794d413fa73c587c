"""The forms that layers take on an accelerator, tried on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mil_jax.layers import backend, pseudo_inverse
from mil_jax.types import Array


def _tf32(x: Array) -> Array:
    """Rounded to the 10 bits behind the point that TF32 holds."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type((bits + jnp.uint32(0x1000)) & jnp.uint32(0xFFFFE000), jnp.float32)


@jax.custom_vjp
def three_products(a: Array, b: Array) -> Array:
    """a b as `TF32_TF32_F32_X3` computes it, which no CPU does."""
    (a, rest_a), (b, rest_b) = _split(a), _split(b)
    return sum(jnp.matmul(x, y, precision=lax.Precision.HIGHEST) for x, y in ((rest_a, b), (a, rest_b), (a, b)))


three_products.defvjp(
    lambda a, b: (three_products(a, b), (a, b)),
    lambda factors, g: (three_products(g, factors[1].mT), three_products(factors[0].mT, g)),
)


def _split(x: Array) -> tuple[Array, Array]:
    return _tf32(x), _tf32(x - _tf32(x))


@contextmanager
def forms_of_accelerators() -> Iterator[None]:
    """Programs that are traced inside take them."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "is_cpu", lambda: False)
        patch.setattr(pseudo_inverse, "product", three_products)
        yield
    jax.clear_caches()
