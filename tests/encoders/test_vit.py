"""Vision transformers against those of `transformers`, with random weights and every feature that a published encoder has."""

from __future__ import annotations

import numpy as np
import pytest

from tests.skips import needs

torch = needs("torch")
transformers = needs("transformers")

from mil_jax.encoders.layouts import from_conch, from_transformers  # noqa: E402
from mil_jax.encoders.vit import VisionTransformer  # noqa: E402
from mil_jax.layers.vit import interpolated_positions, interpolation_matrix, linear_resize  # noqa: E402
from tests.encoders import oracles  # noqa: E402

DIM, DEPTH, HEADS, PATCH, SIDE = 24, 3, 3, 4, 3
FIELDS = {"dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH, "table_side": SIDE, "at_once": 2}
SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": PATCH * SIDE,
}
REGISTERS = 2


@pytest.fixture(scope="module")
def dinov2():
    """DINOv2 with registers, layer scale and SwiGLU: the parts of UNI2, Virchow2, H-optimus and GigaPath."""
    config = transformers.Dinov2WithRegistersConfig(**SIZES, use_swiglu_ffn=True, num_register_tokens=REGISTERS)
    return oracles.randomised(transformers.Dinov2WithRegistersModel(config))


def gated(**fields):
    hidden_dim = (int(4 * DIM * 2 / 3) + 7) // 8 * 8
    settings = {"hidden_dim": hidden_dim, "gated": True, "layer_scale": True, "num_registers": REGISTERS}
    return VisionTransformer(**FIELDS, **(settings | fields))


def test_the_plain_form_is_that_of_transformers_in_its_own_layout(tmp_path):
    config = transformers.ViTConfig(**SIZES, intermediate_size=4 * DIM)
    network = oracles.randomised(transformers.ViTModel(config))
    x = oracles.images(3, 12, 12)
    wanted = network(oracles.channels_first(x)).last_hidden_state[:, 0]
    arrays = from_transformers(oracles.published(network, tmp_path))
    oracles.assert_same(oracles.vectors(VisionTransformer(**FIELDS, epsilon=1e-12), arrays, x), wanted)


def test_registers_layer_scale_and_gates_are_those_of_dinov2(dinov2, tmp_path):
    x = oracles.images(2, 12, 12)
    wanted = dinov2(oracles.channels_first(x)).last_hidden_state[:, 0]
    oracles.assert_same(oracles.vectors(gated(), from_transformers(oracles.published(dinov2, tmp_path)), x), wanted)


@pytest.mark.parametrize(
    "in_front",
    [pytest.param(0, id="UNI2 and H-optimus", marks=pytest.mark.full), pytest.param(1 + REGISTERS, id="Virchow2")],
)
def test_class_token_and_registers_may_have_positions_or_none(dinov2, tmp_path, in_front):
    arrays = from_transformers(oracles.published(dinov2, tmp_path))
    x = oracles.images(2, 12, 12)
    tokens = dinov2(oracles.channels_first(x)).last_hidden_state
    wanted = torch.cat([tokens[:, 0], tokens[:, 1 + REGISTERS :].mean(1)], dim=1)
    first, rest = arrays["pos_embed"][:, :1], arrays["pos_embed"][:, 1:]
    if in_front:  # the registers' positions, taken from the registers
        moved = np.random.default_rng(0).normal(size=(1, REGISTERS, DIM)).astype(np.float32)
        arrays |= {
            "reg_token": arrays["reg_token"] - moved,
            "pos_embed": np.concatenate([first, moved, rest], axis=1),
        }
    else:
        arrays |= {"cls_token": arrays["cls_token"] + first, "pos_embed": rest}
    module = gated(positions_in_front=in_front, output="class_and_mean")
    oracles.assert_same(oracles.vectors(module, arrays, x), wanted)


def test_another_size_of_images_gets_interpolated_positions(dinov2, tmp_path):
    x = oracles.images(2, 20, 16)
    wanted = dinov2(oracles.channels_first(x)).last_hidden_state[:, 0]
    arrays = from_transformers(oracles.published(dinov2, tmp_path))
    oracles.assert_same(oracles.vectors(gated(interpolation="timm"), arrays, x), wanted)


def test_the_visual_tower_of_conch_pools_all_tokens_by_one_query(tmp_path):
    config = transformers.Dinov2Config(**SIZES, use_swiglu_ffn=False)
    network = oracles.randomised(transformers.Dinov2Model(config))
    width, heads = 16, 2
    norms = {name: oracles.randomised(torch.nn.LayerNorm(size), size) for name, size in (("q", width), ("k", DIM))}
    last = oracles.randomised(torch.nn.LayerNorm(width), 7)
    generator = torch.Generator().manual_seed(3)

    def matrix(rows: int, columns: int):
        return torch.randn((rows, columns), generator=generator) / columns**0.5

    query, to_q, to_kv, to_out = matrix(1, width), matrix(width, width), matrix(2 * width, DIM), matrix(width, width)
    x = oracles.images(2, 12, 12)
    tokens = network(oracles.channels_first(x)).last_hidden_state
    q = (norms["q"](query) @ to_q.T).reshape(1, 1, heads, -1).transpose(1, 2).expand(2, -1, -1, -1)
    k, v = (norms["k"](tokens) @ to_kv.T).reshape(2, tokens.shape[1], 2, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, width)
    wanted = last(mixed @ to_out.T)

    arrays = {f"trunk.{name}": a for name, a in from_transformers(oracles.published(network, tmp_path)).items()}
    pool = {"to_q.weight": to_q, "to_kv.weight": to_kv, "to_out.weight": to_out, "query": query}
    pool |= {f"ln_{name}.{key}": norm.state_dict()[key] for name, norm in norms.items() for key in ("weight", "bias")}
    arrays |= {f"attn_pool_contrast.{name}": tensor.numpy() for name, tensor in pool.items()}
    arrays |= {f"ln_contrast.{key}": last.state_dict()[key].numpy() for key in ("weight", "bias")}
    module = VisionTransformer(**FIELDS, layer_scale=True, output="query", pooled_dim=width, pooled_heads=heads)
    oracles.assert_same(oracles.vectors(module, from_conch(arrays, SIDE), x), wanted)


@pytest.mark.parametrize("wanted", [3, 5, 9, 16])
@pytest.mark.parametrize("interpolation", ["dino", "torch", "timm"])
def test_positions_are_interpolated_as_pytorch_does(interpolation, wanted):
    table = torch.randn((1, 6, 7, 7), generator=torch.Generator().manual_seed(0))
    how = {"scale_factor": ((wanted + 0.1) / 7,) * 2} if interpolation == "dino" else {"size": (wanted, wanted)}
    fitted = torch.nn.functional.interpolate(table, mode="bicubic", antialias=interpolation == "timm", **how)
    rows = np.concatenate([np.zeros((2, 6)), table[0].reshape(6, -1).T.numpy()]).astype(np.float32)
    found = interpolated_positions(rows, (wanted, wanted), 2, interpolation)
    np.testing.assert_allclose(found[2:], fitted[0].reshape(6, -1).T.numpy(), atol=2e-5)


@pytest.mark.parametrize("wanted", [3, 7, 14])
def test_tables_are_resized_bilinearly_as_pytorch_does(wanted):
    table = torch.randn((1, 2, 9, 9), generator=torch.Generator().manual_seed(0))
    fitted = torch.nn.functional.interpolate(table, size=(wanted, wanted), mode="bilinear")
    matrix = linear_resize(9, wanted)
    np.testing.assert_allclose(matrix @ table[0].numpy() @ matrix.T, fitted[0].numpy(), atol=1e-5)


def test_every_row_of_an_interpolation_sums_to_one():
    np.testing.assert_allclose(interpolation_matrix(14, 9, "timm").sum(axis=1), 1.0)
