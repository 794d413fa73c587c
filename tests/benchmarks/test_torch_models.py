"""The PyTorch modules that ours are timed against compute the same: with our parameters, the same logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks.cases import drawn_experiment
from mil_jax.bags import Bag
from mil_jax.experiment.phases import make_strategy

torch = pytest.importorskip("torch")
from benchmarks import torch_models  # noqa: E402

N, DIM = 700, 24
RENAMED = {
    **{
        f"layer_{number}_{part}": f"layers.{number - 1}.{part}"
        for number in (1, 2)
        for part in ("qkv", "output", "residual")
    },
    **{f"position_{number}": f"positions.{number - 1}" for number in (1, 2, 3)},
    **{f"instance_classifier_{number}": f"instance_classifiers.{number}" for number in (0, 1)},
    "layer_0_qkv": "qkv.0",
    "layer_0_projection": "projections.0",
    "layer_0_epeg": "epeg",
    "cross_region_qkv": "qkv.1",
    "cross_region_projection": "projections.1",
}
NORMS = {
    "transmil": {"layer_1_norm": "norms.0", "layer_2_norm": "norms.1", "norm": "norms.2"},
    "rrt": {"layer_0_norm": "norms.0", "cross_region_norm": "norms.1", "norm": "norms.2"},
}


def state_dict(method: str, params: Any) -> dict[str, Any]:
    """Our parameters under the modules' names, in PyTorch's layout."""
    renamed, converted = RENAMED | NORMS.get(method, {}), {}
    for path, value in flatten_dict(params).items():
        array = np.asarray(value)
        if len(path) == 1:
            converted[{"cross_region_phi": "phi"}.get(path[0], path[0])] = array
            continue
        name = f"{renamed.get(path[0], path[0])}.{'bias' if path[1] == 'bias' else 'weight'}"
        if array.ndim == 3:  # a convolution over classes and features
            array = array.reshape(-1, array.shape[-1])
        if path[1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        converted[name] = array
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in converted.items()}


@pytest.mark.parametrize(
    "method",
    [
        "abmil",
        "clam_sb",
        "dsmil",
        pytest.param("transmil", marks=pytest.mark.full),
        pytest.param("rrt", marks=pytest.mark.full),
    ],
)
def test_logits_and_loss_are_ours(method):
    experiment = drawn_experiment(method, bags=20, mean_size=64, sigma=0.0, dim=DIM)
    module = make_strategy(experiment.config, experiment.task, experiment.plan).module
    x = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    bag = Bag(jnp.asarray(x), jnp.ones(N, bool))
    params = jax.jit(module.init)(jax.random.key(0), bag)["params"]
    prediction = jax.jit(lambda params: module.apply({"params": params}, bag))(params)
    theirs = torch_models.MODELS[method](DIM).eval()
    theirs.load_state_dict(state_dict(method, params), strict=True)
    with torch.no_grad():
        logits, loss = theirs(torch.tensor(x)), theirs.loss(torch.tensor(x), torch.tensor([1]))
    np.testing.assert_allclose(logits.numpy(), prediction.logits, rtol=2e-4, atol=2e-5)
    batch = jax.tree.map(lambda leaf: leaf[None], prediction)
    target = [[0.0, 1.0]] if experiment.config.task.loss_name == "binary_cross_entropy" else [1]
    expected = module.training_loss(experiment.task, batch, jnp.array(target), jnp.ones(1))
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
