"""The convolutions of the LeNet of Ilse et al. 2018 (MNIST bags): two times 5x5 convolution, ReLU, 2x2 max pooling.

Convolutions are patches times a matrix: `lax.conv` inside a loop is very slow on a CPU. Max pooling follows PyTorch
in sending the gradient to one pixel of the window, the first of equals. The result is flattened channel by channel,
as the reference does, so that published weights of the layer behind it fit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mil_jax.layers.initializers import Affine
from mil_jax.types import Array

CHANNELS = (20, 50)
KERNEL_SIZE = 5
IMAGE_SIZE = 28


def convolution(x: Array, layer: Affine) -> Array:
    """Convolution without padding, stride 1: x [N, H, W, in], kernel [k, k, in, out] -> [N, H-k+1, W-k+1, out]."""
    size, _, _, features = layer.kernel.shape
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    rows = jnp.concatenate([x[:, i : i + height] for i in range(size)], axis=-1)  # [N, H-k+1, W, k * in]
    patches = jnp.concatenate([rows[:, :, j : j + width] for j in range(size)], axis=-1)  # [..., k * k * in]
    kernel = layer.kernel.transpose(1, 0, 2, 3).reshape(
        -1, features
    )  # in the order of the patches: column, row, channel
    return Affine(kernel, layer.bias)(patches)


def max_pool(x: Array) -> Array:
    """2x2 windows, stride 2: [N, H, W, C] -> [N, H//2, W//2, C]."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    largest = x[:, 0:height:2, 0:width:2]
    for i, j in ((0, 1), (1, 0), (1, 1)):
        pixel = x[:, i:height:2, j:width:2]
        largest = jnp.where(pixel > largest, pixel, largest)
    return largest


def lenet_features(images: Array, first: Affine, second: Affine) -> Array:
    """Images [N, H, W, channels] -> [N, 50 * h * w], channel-major; 800 wide for 28 x 28 pixels."""
    x = max_pool(jax.nn.relu(convolution(images, first)))
    x = max_pool(jax.nn.relu(convolution(x, second)))
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
