"""Residual networks against those of `transformers`, with random weights and statistics."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.skips import needs

torch = needs("torch")
transformers = needs("transformers")

from mil_jax.encoders.resnet import BLOCKS, ResNet  # noqa: E402
from mil_jax.errors import DataError  # noqa: E402
from mil_jax.interop.torch_checkpoints import import_state_dict  # noqa: E402
from tests.encoders import oracles  # noqa: E402

WIDTHS = (8, 12, 16, 20)


def network(layers: int) -> torch.nn.Module:
    kind, factor = ("bottleneck", 4) if layers >= 50 else ("basic", 1)
    config = transformers.ResNetConfig(
        embedding_size=WIDTHS[0],
        hidden_sizes=[factor * w for w in WIDTHS],
        depths=list(BLOCKS[layers]),
        layer_type=kind,
    )
    return oracles.randomised(transformers.ResNetModel(config))


def by_the_names_of_torchvision(state: dict) -> dict[str, np.ndarray]:
    """`transformers` -> torchvision."""
    named = {}
    for name, tensor in state.items():
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d)", lambda found: f"layer{int(found[1]) + 1}", name)
        name = re.sub(r"layers\.(\d+)\.shortcut\.convolution", r"\1.downsample.0", name)
        name = re.sub(r"layers\.(\d+)\.shortcut\.normalization", r"\1.downsample.1", name)
        name = re.sub(
            r"layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)",
            lambda found: f"{found[1]}.{'conv' if found[3] == 'convolution' else 'bn'}{int(found[2]) + 1}",
            name,
        )
        named[name] = tensor.numpy()
    return named


FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("layers", "stages"),
    [(18, 4), (50, 3), *(pytest.param(*case, marks=FULL) for case in ((18, 3), (34, 4), (50, 4)))],
)
def test_the_means_of_the_feature_maps_are_those_of_transformers(layers, stages):
    theirs = network(layers)
    x = oracles.images(2, 64, 96)
    hidden = theirs(oracles.channels_first(x), output_hidden_states=True).hidden_states
    arrays = by_the_names_of_torchvision(theirs.state_dict())
    arrays |= {"fc.weight": np.zeros((5, 3), np.float32), "fc.bias": np.zeros(5, np.float32)}
    found = oracles.vectors(ResNet(layers, stages, WIDTHS), arrays, x)
    oracles.assert_same(found, hidden[stages].mean((2, 3)))


def test_weights_of_another_depth_are_refused():
    arrays = by_the_names_of_torchvision(network(18).state_dict())
    with pytest.raises(DataError, match=r"does not fit .*missing: layer1\.0\.bn3\.bias.* and \d+ more"):
        import_state_dict(ResNet(50, 4, WIDTHS), arrays, "resnet50")
