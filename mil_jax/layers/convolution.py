"""Convolutions and pooling of whole batches of images, for encoders that are applied and not trained.

A batch norm in evaluation is part of the convolution in front: y = conv(x, s k) + b - s mean, s = scale / sqrt(variance + eps). A 1 x 1
convolution is a matrix product, which XLA runs faster on a CPU than its convolution. (Inside loops and for gradients use `lenet.py`.)
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers.initializers import KERNEL_INITIALIZERS
from mil_jax.types import Array

EPSILON = 1e-5  # of PyTorch's batch norm


class NormedConvolution(NamedTuple):
    """A convolution without bias [k, k, in, out] and the batch norm behind it: scale, bias, mean, variance [out]."""

    kernel: Array
    scale: Array
    bias: Array
    mean: Array
    variance: Array

    def __call__(self, x: Array, stride: int = 1) -> Array:
        """x [N, H, W, in] -> [N, H / stride, W / stride, out], padded by k // 2."""
        factor = self.scale.astype(jnp.float32) * jax.lax.rsqrt(self.variance.astype(jnp.float32) + EPSILON)
        shift = self.bias - factor * self.mean
        kernel = (self.kernel * factor).astype(x.dtype)
        return convolve(x, kernel, stride) + shift.astype(x.dtype)


class NormedConvolutionParameters(nn.Module):
    """Declares the parameters; called with k and the number of channels that come in."""

    features: int

    @nn.compact
    def __call__(self, size: int, inputs: int) -> NormedConvolution:
        shape = (self.features,)
        return NormedConvolution(
            self.param("kernel", KERNEL_INITIALIZERS["kaiming_normal"], (size, size, inputs, self.features)),
            self.param("scale", nn.initializers.ones, shape),
            self.param("bias", nn.initializers.zeros, shape),
            self.param("mean", nn.initializers.zeros, shape),
            self.param("variance", nn.initializers.ones, shape),
        )

    @staticmethod
    def published(convolution: str, norm: str, path: str) -> dict[str, tuple[str, str]]:
        """Published names of the two layers -> (path of the parameter, transform)."""
        return {
            f"{convolution}.weight": (f"{path}/kernel", "conv"),
            f"{norm}.weight": (f"{path}/scale", "same"),
            f"{norm}.bias": (f"{path}/bias", "same"),
            f"{norm}.running_mean": (f"{path}/mean", "same"),
            f"{norm}.running_var": (f"{path}/variance", "same"),
        }


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """x [N, H, W, in], kernel [k, k, in, out] -> [N, H / stride, W / stride, out], padded by k // 2."""
    size = kernel.shape[0]
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    padding = [(size // 2, size // 2)] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Array) -> Array:
    """3 x 3 windows, stride 2, padded by 1: [N, H, W, C] -> [N, ceil(H / 2), ceil(W / 2), C]."""
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
