"""Parameters of linear and convolution layers, drawn as the reference implementations draw them.

`torch`: PyTorch's default, weight and bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)). `xavier_normal`: N(0, 2 / (fan_in +
fan_out)), bias 0 (not truncated, unlike `jax.nn.initializers.glorot_normal`). `kaiming_uniform`: U(-sqrt(6/fan_in),
sqrt(6/fan_in)), bias 0. `kaiming_normal`: N(0, 2 / fan_out), of residual networks. `orthogonal`: the kernel as a matrix
[product of the other axes, out] has orthonormal columns (or rows), bias 0. `xavier_uniform`: U(-b, b), b = sqrt(6 /
(fan_in + fan_out)), bias 0. `normal_0.02`: of vision transformers, bias 0. Layers only hold parameters; aggregators do
the arithmetic, so that several layers can share one matrix product.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, orthogonal, variance_scaling

from mil_jax.types import Array

KERNEL_INITIALIZERS = {
    "torch": variance_scaling(1.0 / 3.0, "fan_in", "uniform"),
    "xavier_normal": variance_scaling(1.0, "fan_avg", "normal"),
    "kaiming_uniform": variance_scaling(2.0, "fan_in", "uniform"),
    "kaiming_normal": variance_scaling(2.0, "fan_out", "normal"),
    "orthogonal": orthogonal(),
    "xavier_uniform": variance_scaling(1.0, "fan_avg", "uniform"),
    "normal_0.02": normal(0.02),
}


def ranked_product(x: Array, kernel: Array) -> Array:
    """x [..., in] kernel [in, ...] in float32 whatever the types: for what is ranked or compared.

    A GPU multiplies float32 numbers as TF32, with 10 bits, unless it is asked otherwise, as here: such products are thin.
    """
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32, precision=exact)


class Affine(NamedTuple):
    """A kernel [in, out] or [height, width, in, out], and a bias [out] or None."""

    kernel: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out], for a linear layer."""
        y = x @ self.kernel
        return y if self.bias is None else y + self.bias

    def scores(self, x: Array) -> Array:
        """The same for what is ranked or compared, see `ranked_product`."""
        y = ranked_product(x, self.kernel)
        return y if self.bias is None else y + self.bias


class AffineParameters(nn.Module):
    """Declares `kernel` and `bias` of a layer with `features` outputs; called with the other axes of the kernel.

    Linear: `AffineParameters(128)(512)`; convolution: `AffineParameters(20)(5, 5, 1)`.
    """

    features: int
    initializer: str = "torch"
    use_bias: bool = True

    @nn.compact
    def __call__(self, *axes: int) -> Affine:
        kernel = self.param("kernel", KERNEL_INITIALIZERS[self.initializer], (*axes, self.features))
        if not self.use_bias:
            return Affine(kernel, None)
        bound = 1.0 / math.sqrt(math.prod(axes)) if self.initializer == "torch" else 0.0

        def bias(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound) if bound else jnp.zeros(shape)

        return Affine(kernel, self.param("bias", bias, (self.features,)))
