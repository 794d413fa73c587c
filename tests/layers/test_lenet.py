"""The LeNet layer against XLA's convolution and PyTorch's rules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers.initializers import Affine
from mil_jax.layers.lenet import convolution, lenet_features, max_pool
from tests.skips import needs

GENERATOR = np.random.default_rng(0)


def _layer(inputs: int, outputs: int) -> Affine:
    kernel = GENERATOR.standard_normal((5, 5, inputs, outputs)) / np.sqrt(25 * inputs)
    return Affine(jnp.asarray(kernel, jnp.float32), jnp.asarray(GENERATOR.standard_normal(outputs), jnp.float32))


def test_convolution_by_patches_equals_xlas():
    x, layer = jnp.asarray(GENERATOR.standard_normal((2, 9, 11, 3)), jnp.float32), _layer(3, 4)
    expected = jax.lax.conv_general_dilated(
        x, layer.kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(convolution(x, layer), expected + layer.bias, atol=1e-5)


def test_max_pool_sends_the_gradient_to_the_first_of_equal_pixels():
    x = jnp.array([[1.0, 5.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(jax.grad(lambda x: max_pool(x).sum())(x).reshape(2, 2), [[0.0, 1.0], [0.0, 0.0]])


def test_max_pool_leaves_out_an_odd_last_row_and_column():
    np.testing.assert_array_equal(max_pool(jnp.arange(25.0).reshape(1, 5, 5, 1)).reshape(2, 2), [[6, 8], [16, 18]])


def test_features_and_gradients_equal_pytorchs_with_the_same_weights():
    torch = needs("torch")
    images = GENERATOR.standard_normal((3, 28, 28, 1)).astype(np.float32)
    first, second = _layer(1, 20), _layer(20, 50)
    cotangent = GENERATOR.standard_normal((3, 800)).astype(np.float32)
    out, pull = jax.vjp(lambda *layers: lenet_features(jnp.asarray(images), *layers), first, second)
    gradients = pull(jnp.asarray(cotangent))

    def tensors(layer):
        kernel = torch.tensor(np.asarray(layer.kernel).transpose(3, 2, 0, 1).copy(), requires_grad=True)
        return kernel, torch.tensor(np.asarray(layer.bias), requires_grad=True)

    (k1, b1), (k2, b2) = tensors(first), tensors(second)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    for kernel, bias in ((k1, b1), (k2, b2)):
        x = torch.nn.functional.max_pool2d(torch.relu(torch.nn.functional.conv2d(x, kernel, bias)), 2)
    x = x.reshape(3, -1)
    x.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(out, x.detach().numpy(), atol=1e-4)
    for ours, theirs in ((gradients[0], (k1, b1)), (gradients[1], (k2, b2))):
        np.testing.assert_allclose(ours.kernel.transpose(3, 2, 0, 1), theirs[0].grad.numpy(), atol=1e-3)
        np.testing.assert_allclose(ours.bias, theirs[1].grad.numpy(), atol=1e-3)
