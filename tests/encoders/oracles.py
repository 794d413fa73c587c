"""Networks of `transformers` with random numbers in all their parameters and statistics, and their published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from mil_jax.bags import Bag
from mil_jax.interop.torch_checkpoints import import_state_dict


def randomised(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network in evaluation, no parameter or statistic left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 25
                noise = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                is_scale = tensor.ndim == 1 and name.endswith("weight")
                tensor.copy_(noise + (1.0 if is_scale else 0.0))
    return network.eval()


def published(network: Any, folder: Path) -> dict[str, np.ndarray]:
    """The state dict as `save_pretrained` writes it for others to read."""
    network.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal pixels [N, H, W, 3], float32."""
    return np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def vectors(module: Any, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What our module makes of images with these weights, behind them an image of padding."""
    params = import_state_dict(module, arrays, "")
    padded = np.concatenate([x, np.full_like(x[:1], np.nan)])
    bag = Bag(jnp.asarray(padded), jnp.arange(len(padded)) < len(x))
    found = np.asarray(jax.jit(lambda params, bag: module.apply({"params": params}, bag).features)(params, bag))
    assert not found[-1].any()
    return found[:-1]


def assert_same(found: np.ndarray, wanted: torch.Tensor) -> None:
    """Equal to 1e-4 of the largest."""
    expected = wanted.detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
