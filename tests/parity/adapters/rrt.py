"""Cases of RRT-MIL: the whole model, its encoder alone, and the attentions inside and between regions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.aggregators.r2t import R2T
from mil_jax.bags import Bag
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers.initializers import Affine
from mil_jax.layers.region_attention import (
    Grid,
    cross_region_attention,
    multi_head_attention,
    region_attention,
)
from tests.parity import fill
from tests.parity.adapters.base import Answer, classification_task, gradient_entries
from tests.parity.case import Case

_FIELDS = {  # the case's name of a setting -> ours
    "act": "feature_activation",
    "all_shortcut": "shortcut",
    "cr_msa": "cross_region",
    "crmsa_heads": "cross_region_heads",
    "crmsa_k": "representatives",
    "crmsa_mlp": "cross_region_mlp",
    "crmsa_region_num": "cross_region_num",
    "da_act": "attention_activation",
    "da_bias": "attention_bias",
    "da_gated": "attention_gated",
    "epeg_2d": "epeg_2d",
    "epeg_k": "epeg_kernel",
    "ffn": "feed_forward",
    "ffn_act": "feed_forward_activation",
    "min_region_num": "min_region_num",
    "min_region_ratio": "min_region_ratio",
    "mlp_dim": "feature_dim",
    "mlp_ratio": "feed_forward_ratio",
    "n_heads": "num_heads",
    "n_layers": "num_layers",
    "peg_bias": "position_bias",
    "peg_k": "position_kernel",
    "pos": "position",
    "qkv_bias": "qkv_bias",
    "region_num": "region_num",
    "region_size": "region_size",
}
_PLACES = {-1: "before", 0: "between"}


def _settings(case: Case) -> dict[str, Any]:
    settings = {ours: case.config[theirs] for theirs, ours in _FIELDS.items() if case.config.get(theirs) is not None}
    if case.config.get("epeg") is False:
        settings["epeg_kernel"] = 0
    if "pos_pos" in case.config:
        settings["position_place"] = _PLACES[case.config["pos_pos"]]
    return settings


def _num_rows(case: Case) -> int:
    return case.meta["inputs"]["x"][-2]


def _padded(x: np.ndarray, bucket: int | None) -> tuple[jax.Array, jax.Array]:
    """x [..., n, D] with rows of NaN up to the bucket, and the mask [bucket]."""
    rows = x.shape[-2]
    full = np.full((*x.shape[:-2], bucket or rows, x.shape[-1]), np.nan, np.float32)
    full[..., :rows, :] = x
    return jnp.asarray(full), jnp.arange(full.shape[-2]) < rows


def _cotangent_loss(case: Case, out: jax.Array, num_rows: int) -> jax.Array:
    """sum(out * cotangent), over the real rows of out [..., N, D]."""
    cotangent = fill.input_array("cotangent", case.arrays["out/out"].shape, case.meta["salt"])
    return jnp.sum(out[..., :num_rows, :] * cotangent.reshape(*out.shape[:-2], num_rows, -1))


def _answer(values: dict[str, Any], grads: dict[str, np.ndarray], x_gradient: Any, num_rows: int) -> Answer:
    entries = gradient_entries({**grads, "input/x": np.asarray(x_gradient)[..., :num_rows, :]})
    return Answer({f"out/{key}": value for key, value in values.items()} | entries)


class Model:
    """The whole model: cross entropy of one bag."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [_num_rows(case)]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        fields = {**aggregators.variants()[case.variant].fields, **_settings(case)}
        num_outputs = case.meta["params"]["predictor.weight"][0]
        module = aggregators.create("rrt", num_outputs, **fields)
        task = classification_task("ce", num_outputs)
        label = case.config.get("label", int(re.search(r"label (\d+)", case.meta["notes"])[1]))
        params = import_state_dict(module, case.state_dict(), case.variant)
        n = _num_rows(case)
        x, mask = _padded(case.input("x")[0], bucket)

        def loss(params: Any, x: jax.Array) -> Any:
            prediction, sown = module.apply({"params": params}, Bag(x, mask), mutable="intermediates")
            batched = jax.tree.map(lambda value: value[None], prediction)
            return task.loss(batched, jnp.array([label]), jnp.ones(1)), (prediction, sown["intermediates"])

        (value, (prediction, sown)), (grads, gradient) = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        )(params, x)
        layers = {name: layer[0][:n].mean(axis=-1) for name, layer in sown.items() if name != "instance_features"}
        h = sown["instance_features"][0][:n]
        values = {
            "loss": value,
            "logits": prediction.logits,
            "probs": jax.nn.softmax(prediction.logits),
            "attn": prediction.attention[:n],
            "attn_raw": prediction.scores[:n],
            "bag_embedding": prediction.embedding,
            "encoder_token0": h[0],
            "encoder_last_token": h[-1],
        }
        for name, means in layers.items():
            values[{"cross_region": "cr_token_mean"}.get(name, f"{name.replace('_', '')}_token_mean")] = means
        return _answer(values, export_state_dict(module, grads, case.variant), gradient, n)


class Encoder:
    """The re-embedding without a feature layer."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [_num_rows(case)]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module = R2T(**{**_settings(case), "feature_layer": "none", "dropout": 0.0})
        params = import_state_dict(module, case.state_dict(), case.variant)
        n = _num_rows(case)
        x, mask = _padded(case.input("x")[0], bucket)

        def loss(params: Any, x: jax.Array) -> Any:
            out = module.apply({"params": params}, Bag(x, mask)).features
            return _cotangent_loss(case, out, n), out

        (value, out), (grads, gradient) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
        return _answer({"loss": value, "out": out[:n]}, export_state_dict(module, grads, case.variant), gradient, n)


class Attention:
    """One attention by itself, from its published parameters: `run(case, params, x, mask) -> out` with the shape of x."""

    def __init__(self, run: Callable[[Case, dict[str, jax.Array], jax.Array, jax.Array], jax.Array]) -> None:
        self.run = run

    def bag_sizes(self, case: Case) -> list[int]:
        return [_num_rows(case)]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        n, params = _num_rows(case), {name: jnp.asarray(value) for name, value in case.state_dict().items()}
        x, mask = _padded(case.input("x"), bucket)

        def loss(params: dict[str, jax.Array], x: jax.Array) -> Any:
            out = self.run(case, params, x, mask)
            return _cotangent_loss(case, out, n), out

        (value, out), (grads, gradient) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)
        named = {name: np.asarray(gradient) for name, gradient in grads.items()}
        return _answer({"loss": value, "out": out[..., :n, :]}, named, gradient, n)


def _linear(params: dict[str, jax.Array], name: str) -> Affine:
    return Affine(params[f"{name}.weight"].T, params.get(f"{name}.bias"))


def _epeg(params: dict[str, jax.Array], name: str) -> Affine | None:
    if f"{name}.weight" not in params:
        return None
    return Affine(params[f"{name}.weight"].transpose(2, 3, 1, 0), params.get(f"{name}.bias"))


def _grid(case: Case) -> Grid:
    names = ("region_num", "region_size", "min_region_num", "min_region_ratio")
    return Grid(**{name: case.config[name] for name in names if case.config.get(name) is not None})


def _inner(case: Case, params: dict[str, jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
    x = jnp.where(mask[:, None], x, 0.0)
    exists = jnp.broadcast_to(mask, x.shape[:2])
    out = multi_head_attention(_linear(params, "qkv")(x), exists, case.config["num_heads"], _epeg(params, "pe"))
    return _linear(params, "proj")(out)


def _regions(case: Case, params: dict[str, jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
    layers = (_linear(params, "attn.qkv"), _linear(params, "attn.proj"), _epeg(params, "attn.pe"))
    return region_attention(x[0], mask, *layers, num_heads=case.config["num_heads"], grid=_grid(case))[None]


def _between(case: Case, params: dict[str, jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
    def phi(x: jax.Array) -> jax.Array:
        if "phi" in params:
            return x @ params["phi"]
        return _linear(params, "phi.2")(jnp.tanh(_linear(params, "phi.0")(x)))

    layers = (_linear(params, "attn.qkv"), _linear(params, "attn.proj"))
    return cross_region_attention(x[0], mask, phi, *layers, num_heads=case.config["num_heads"], grid=_grid(case))[None]


ADAPTERS = {
    ("rrt", "rrtmil"): Model(),
    ("rrt", "encoder"): Encoder(),
    ("rrt", "InnerAttention"): Attention(_inner),
    ("rrt", "RegionAttntion"): Attention(_regions),
    ("rrt", "CrossRegionAttntion"): Attention(_between),
}
