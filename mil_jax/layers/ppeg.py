"""Position encoding by convolution of TransMIL (PPEG, section 3.2): tokens laid row by row on a square and convolved per channel.

y = f + conv7(f) + conv5(f) + conv3(f), each depthwise with zero borders. Zero borders are the same for all three, so they are one 7 x 7
convolution (`fold_kernels`), and the identity is its centre. The side of the square comes from the dynamic number of tokens, inside a
static one. The convolution is written as shifted sums, and its gradients by hand: `lax.conv` takes 10 times as long on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mil_jax.layers import backend
from mil_jax.layers.initializers import Affine
from mil_jax.types import Array


def square_side(count: Array) -> Array:
    """ceil(sqrt(count)), exact for every int32 below 2^30 (a float32 root alone is not)."""
    side = jnp.sqrt(count.astype(jnp.float32)).astype(jnp.int32)
    side -= side * side > count
    return side + (side * side < count)


def static_side(size: int) -> int:
    """The side of the square for the longest bag of a bucket."""
    return int(np.ceil(np.sqrt(size)))


def complete_square(tokens: Array, num_tokens: Array) -> Array:
    """The first n rows of tokens [N, D], then as many of them again as fill a square of side ceil(sqrt n), then zeros: [H * H, D].

    H = ceil(sqrt N). Moving one block of rows instead of a gather: its transpose is no scatter.
    """
    cells = static_side(len(tokens)) ** 2
    repeats = min(len(tokens), 2 * static_side(len(tokens)))  # h^2 - n <= min(n, 2 h - 2)
    room = jnp.pad(tokens, ((0, cells + repeats - len(tokens)), (0, 0)))
    square = lax.dynamic_update_slice_in_dim(room, tokens[:repeats], num_tokens, axis=0)[:cells]
    return jnp.where((jnp.arange(cells) < square_side(num_tokens) ** 2)[:, None], square, 0)


def fold_kernels(convolutions: Sequence[Affine]) -> tuple[Array, Array]:
    """Depthwise kernels [k, k, 1, D], k odd, and the identity as one kernel [K, K, D] with one bias [D]."""
    size = max(layer.kernel.shape[0] for layer in convolutions)
    channels = convolutions[0].kernel.shape[-1]
    kernel = jnp.zeros((size, size, channels)).at[size // 2, size // 2].set(1.0)
    bias = jnp.zeros(channels)
    for layer in convolutions:
        border = (size - layer.kernel.shape[0]) // 2
        kernel += jnp.pad(layer.kernel[:, :, 0], ((border, border), (border, border), (0, 0)))
        if layer.bias is not None:
            bias += layer.bias
    return kernel, bias


def position_encoding(
    tokens: Array, num_tokens: Array, convolutions: Sequence[Affine], *, min_columns: int = 1
) -> Array:
    """f + sum of depthwise convolutions of the tokens [N, D] on their square, the first n of them real -> [N, D], 0 behind them.

    The square is filled up with the first tokens again; they are dropped afterwards. min_columns: shorter rows are made this long by
    reading on: h * h tokens in rows of `min_columns`, zeros behind (MHIM-MIL: 7).
    """
    square = square_encoding(complete_square(tokens, num_tokens), square_side(num_tokens), convolutions, min_columns)
    return jnp.where((jnp.arange(len(tokens)) < num_tokens)[:, None], square[: len(tokens)], 0)


def square_encoding(square: Array, side: Array, convolutions: Sequence[Affine], min_columns: int = 1) -> Array:
    """`position_encoding` of tokens that fill a square: the first side * side rows of [H * H, D] -> [H * H, D], 0 behind them."""
    kernel, bias = fold_kernels(convolutions)
    columns, width = jnp.maximum(side, min_columns), max(static_side(len(square)), min_columns)
    encoded = grid_convolution(square, side**2, columns, kernel, width)
    return jnp.where((jnp.arange(len(square)) < side**2)[:, None], encoded + bias, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def grid_convolution(tokens: Array, num_tokens: Array, columns: Array, kernel: Array, width: int) -> Array:
    """Depthwise cross-correlation, zero borders, of tokens [T, D] on a grid: token t lies in row t // columns, place t % columns.

    kernel: [K, K, D], K odd. columns <= width, the static bound on the rows and columns in use. -> [T, D], 0 behind `num_tokens`.
    """
    image = _to_image(tokens, num_tokens, columns, width, kernel.shape[0] // 2)
    return _from_image(_convolve(image, kernel), num_tokens, columns, len(tokens))


def _forward(
    tokens: Array, num_tokens: Array, columns: Array, kernel: Array, width: int
) -> tuple[Array, tuple[Array, ...]]:
    return grid_convolution(tokens, num_tokens, columns, kernel, width), (tokens, num_tokens, columns, kernel)


def _backward(
    width: int, residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, np.ndarray, np.ndarray, Array]:
    tokens, num_tokens, columns, kernel = residuals
    border = kernel.shape[0] // 2
    ahead = _to_image(cotangent, num_tokens, columns, width, border)
    to_tokens = _from_image(_convolve(ahead, kernel[::-1, ::-1]), num_tokens, columns, len(tokens))
    image = _to_image(tokens, num_tokens, columns, width, border)
    to_kernel = _kernel_gradient(image, ahead[border : border + width, border : border + width])
    no_gradient = np.zeros((), jax.dtypes.float0)
    return to_tokens.astype(tokens.dtype), no_gradient, no_gradient, to_kernel.astype(kernel.dtype)


grid_convolution.defvjp(_forward, _backward)


def _to_image(tokens: Array, num_tokens: Array, columns: Array, width: int, border: int) -> Array:
    """[T, D] -> [width + 2 border, width + 2 border, D] with zeros outside the grid."""
    place = jnp.arange(-border, width + border)
    row, column = place[:, None], place[None, :]
    token = row * columns + column
    real = (row >= 0) & (column >= 0) & (column < columns) & (token < num_tokens)
    return jnp.where(real[..., None], tokens[jnp.clip(token, 0, len(tokens) - 1)], 0)


def _from_image(image: Array, num_tokens: Array, columns: Array, size: int) -> Array:
    """[width, width, D] -> [size, D], 0 behind `num_tokens`."""
    token = jnp.arange(size)
    last = len(image) - 1
    rows = image[jnp.minimum(token // columns, last), jnp.minimum(token % columns, last)]
    return jnp.where((token < num_tokens)[:, None], rows, 0)


def _convolve(image: Array, kernel: Array) -> Array:
    """[W + K - 1, W + K - 1, D] -> [W, W, D]: a sum of shifted products.

    A CPU takes it in K passes of K, which its compiler must not merge into one; a GPU in one, summed in float32.
    """
    size = kernel.shape[0]
    width = len(image) - size + 1
    on_cpu = backend.is_cpu()
    total = jnp.zeros((width, width, image.shape[-1]), image.dtype if on_cpu else jnp.float32)
    for i in range(size):
        if on_cpu:
            total = lax.optimization_barrier(total)
        for j in range(size):
            total += image[i : i + width, j : j + width] * kernel[i, j]
    return total.astype(image.dtype)


def _kernel_gradient(image: Array, cotangent: Array) -> Array:
    """[K, K, D] for an image [W + K - 1, W + K - 1, D] and a cotangent [W, W, D].

    On a CPU row by row, which stays in the cache; on a GPU all taps in one reduction.
    """
    width = len(cotangent)
    size = len(image) - width + 1
    if not backend.is_cpu():
        places = [(i, j) for i in range(size) for j in range(size)]
        # Never built: the reduction of a tap reads its own part of the image.
        shifted = jnp.stack([image[i : i + width, j : j + width] for i, j in places])
        return jnp.sum(shifted * cotangent.astype(jnp.float32), axis=(1, 2)).reshape(size, size, -1)

    def add_row(total: Array, row: Array) -> tuple[Array, None]:
        above = lax.dynamic_slice_in_dim(image, row, size)  # [K, W + K - 1, D]
        taps = [jnp.sum(above[:, j : j + width] * cotangent[row], axis=1) for j in range(size)]
        return total + jnp.stack(taps, axis=1), None

    return lax.scan(add_row, jnp.zeros((size, size, image.shape[-1]), cotangent.dtype), jnp.arange(width))[0]
