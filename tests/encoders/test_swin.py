"""CTransPath's network against the Swin transformer of `transformers` behind the convolutional stem, with random weights."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.skips import needs

torch = needs("torch")
transformers = needs("transformers")

from mil_jax.bags import Bag  # noqa: E402
from mil_jax.encoders.layouts import from_newer_timm_swin  # noqa: E402
from mil_jax.encoders.swin import SwinTransformer  # noqa: E402
from mil_jax.errors import ConfigError  # noqa: E402
from tests.encoders import oracles  # noqa: E402

DIM, DEPTHS, HEADS, WINDOW = 16, (2, 1, 2, 1), (1, 2, 2, 4), 3
SIDE = 4 * WINDOW * 8
NAMES = {
    r"embeddings\.norm": "patch_embed.norm",
    r"encoder\.layers\.(\d)\.downsample": r"layers.\1.downsample",
    r"encoder\.(layers\.\d\.blocks\.\d)\.layernorm_before": r"\1.norm1",
    r"encoder\.(layers\.\d\.blocks\.\d)\.layernorm_after": r"\1.norm2",
    r"encoder\.(layers\.\d\.blocks\.\d)\.attention\.output\.dense": r"\1.attn.proj",
    r"encoder\.(layers\.\d\.blocks\.\d)\.attention\.self\.relative_position": r"\1.attn.relative_position",
    r"encoder\.(layers\.\d\.blocks\.\d)\.intermediate\.dense": r"\1.mlp.fc1",
    r"encoder\.(layers\.\d\.blocks\.\d)\.output\.dense": r"\1.mlp.fc2",
    r"layernorm\.": "norm.",
}


def stem() -> torch.nn.Sequential:
    """The layers of CTransPath's stem, as its paper describes them."""
    layers: list[torch.nn.Module] = []
    inputs, outputs = 3, DIM // 8
    for _ in range(2):
        layers += [
            torch.nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            torch.nn.BatchNorm2d(outputs),
            torch.nn.ReLU(),
        ]
        inputs, outputs = outputs, 2 * outputs
    return oracles.randomised(torch.nn.Sequential(*layers, torch.nn.Conv2d(inputs, DIM, 1)), 5)


def by_the_names_of_timm(arrays: dict[str, np.ndarray], of_stem: torch.nn.Sequential) -> dict[str, np.ndarray]:
    named = {f"patch_embed.proj.{name}": tensor.numpy() for name, tensor in of_stem.state_dict().items()}
    for name, array in arrays.items():
        if name.startswith("embeddings.patch_embeddings") or re.search(r"\.self\.(key|value)\.", name):
            continue
        if found := re.fullmatch(r"encoder\.(layers\.\d\.blocks\.\d)\.attention\.self\.query\.(\w+)", name):
            parts = [arrays[name.replace("query", part)] for part in ("query", "key", "value")]
            named[f"{found[1]}.attn.qkv.{found[2]}"] = np.concatenate(parts)
            continue
        for theirs, timm in NAMES.items():
            name = re.sub(f"^{theirs}", timm, name)
        named[name] = array
    return named


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(state dict by timm's names, images, the vectors that PyTorch makes)."""
    config = transformers.SwinConfig(
        embed_dim=DIM, depths=list(DEPTHS), num_heads=list(HEADS), window_size=WINDOW, image_size=SIDE, patch_size=4
    )
    network, first = oracles.randomised(transformers.SwinModel(config, add_pooling_layer=False)), stem()
    arrays = by_the_names_of_timm(oracles.published(network, tmp_path_factory.mktemp("swin")), first)
    x = oracles.images(2, SIDE, SIDE)

    class Embedding(torch.nn.Module):
        def forward(self, pixels, **_):
            y = first(pixels)
            return y.flatten(2).transpose(1, 2), (y.shape[2], y.shape[3])

    network.embeddings.patch_embeddings = Embedding()
    return arrays, x, network(oracles.channels_first(x)).last_hidden_state.mean(1)


def test_the_mean_of_the_tokens_is_that_of_transformers(case):
    arrays, x, wanted = case
    oracles.assert_same(oracles.vectors(SwinTransformer(DIM, DEPTHS, HEADS, WINDOW), arrays, x), wanted)


def test_mergings_counted_as_newer_timm_does_are_the_same(case):
    arrays, _, _ = case
    newer = {
        re.sub(r"layers\.(\d)\.down", lambda f: f"layers.{int(f[1]) + 1}.down", name): a for name, a in arrays.items()
    }
    assert sorted(from_newer_timm_swin(newer)) == sorted(arrays)
    assert from_newer_timm_swin(arrays) == arrays


def test_images_that_do_not_fit_are_refused():
    bag = Bag(jnp.zeros((1, 64, 64, 3)), jnp.ones(1, bool))
    with pytest.raises(ConfigError, match="multiples of 96"):
        SwinTransformer(DIM, DEPTHS, HEADS, WINDOW).init(jax.random.key(0), bag)
