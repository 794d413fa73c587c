"""Cases of TransMIL: the model in its published layouts, its Nystrom attention and position layer alone, and its optimiser."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mil_jax import aggregators
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers.initializers import Affine
from mil_jax.layers.nystrom import (
    NystromWeights,
    attend_with_padding,
    first_token_attention,
    front_padding,
    landmarks,
    nystrom_attention,
)
from mil_jax.layers.ppeg import position_encoding
from mil_jax.layers.pseudo_inverse import apply_pseudo_inverse
from mil_jax.strategies.optimizers import OptimizerSettings, make
from tests.parity import fill
from tests.parity.adapters.base import Answer, class_targets, classification_task, gradient_entries, stack_bags
from tests.parity.case import Case

_FIELDS = {  # the case's name of a setting -> ours
    "act": "feature_activation",
    "dim": "feature_dim",
    "heads": "num_heads",
    "landmarks": "num_landmarks",
    "pinv_iterations": "pinv_iterations",
    "pos": "position",
    "peg_k": "position_kernel",
    "res_kernel": "residual_kernel",
}


def _layout(names: Any) -> str:
    """The published layout that has these parameter names."""
    layouts = {
        "_fc2.weight": "transmil_original",
        "blocks.0.norm.weight": "transmil_milab",
        "pos_embedding.proj.weight": "transmil_selfattn",
    }
    found = [layout for name, layout in layouts.items() if name in names]
    return found[0] if found else "transmil_mhim" if "classifier.weight" in names else "transmil_selfattn"


def _build(case: Case, layout: str, num_outputs: int) -> nn.Module:
    fields: dict[str, Any] = {ours: case.config[theirs] for theirs, ours in _FIELDS.items() if theirs in case.config}
    (qkv,) = {tuple(shape) for name, shape in case.meta["params"].items() if name.endswith("to_qkv.weight")}
    fields |= {"head_dim": qkv[0] // (3 * fields["num_heads"]), "squaring": layout != "transmil_selfattn"}
    return aggregators.create("transmil", num_outputs, **fields)


def _input_gradient(name: str, gradient: Any) -> dict[str, np.ndarray]:
    return gradient_entries({f"input/{name}": np.asarray(gradient)})


class Model:
    """One bag, or several run as one padded batch; the loss is the cross entropy with the label that the notes give."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [shape[-2] for shape in case.meta["inputs"].values()]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        layout, config = _layout(case.meta["params"]), case.config
        module = _build(case, layout, config["n_classes"])
        params = import_state_dict(module, case.state_dict(), layout)
        lengths = self.bag_sizes(case)
        rows = max(lengths)
        features = np.zeros((len(lengths), rows, config["in_dim"]), np.float32)
        for number, name in enumerate(case.meta["inputs"]):
            features[number, : lengths[number]] = case.input(name).reshape(lengths[number], -1)
        bags = stack_bags(features, lengths, bucket)
        task = classification_task("ce", config["n_classes"])
        targets = class_targets(task, _labels(case), len(lengths))

        @jax.jit
        def run(params: Any, features: Any) -> Any:
            def loss(params: Any, features: Any) -> Any:
                def predict(bag: Any) -> Any:
                    return module.apply({"params": params}, bag, mutable="intermediates")

                prediction, sown = jax.vmap(predict)(bags.replace(features=features))
                return task.loss(prediction, targets, jnp.ones(len(targets))), (prediction, sown["intermediates"])

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, features)

        (loss, (prediction, sown)), (grads, to_input) = run(params, bags.features)
        losses = -np.asarray(jax.nn.log_softmax(prediction.logits))[np.arange(len(targets)), np.asarray(targets)]
        attention = prediction.aux["class_attention"][:, :, :, :rows]
        tokens = 1 + int(np.ceil(np.sqrt(rows))) ** 2
        values = {
            "loss": loss,
            "losses": losses,
            "logits": prediction.logits,
            "probs": jax.nn.softmax(prediction.logits, axis=-1),
            "embedding": prediction.embedding,
            "layer1_cls": sown["layer_1"][0][:, 0],
            "layer1_token_mean": jnp.mean(sown["layer_1"][0][:, 1:tokens], axis=-1),
            "ppeg_token_mean": jnp.mean(sown["position"][0][:, 1:tokens], axis=-1),
            "layer2_cls": sown["layer_2"][0][:, 0],
            "attn_layer1": attention[:, 0],
            "attn_layer2": attention[:, 1],
        }
        answer = Answer({f"out/{key}": value for key, value in values.items()})
        answer.values |= gradient_entries(export_state_dict(module, grads, layout))
        for number, name in enumerate(case.meta["inputs"]):
            answer.values |= _input_gradient(name, to_input[number, : lengths[number]])
        return answer


def _labels(case: Case) -> list[int]:
    """The labels stand in the config, or at the end of the notes: "label 1", "labels 0,1,1"."""
    for name in ("label", "labels"):
        if name in case.config:
            return list(np.atleast_1d(case.config[name]))
    text = case.meta["notes"].rpartition("label")[2].lstrip("s= ")
    number = ""
    for character in text:
        if not (character.isdigit() or character in ", "):
            break
        number += character
    return [int(part) for part in number.replace(" ", "").strip(",").split(",")]


class SelfAttention:
    """The encoder of MHIM-MIL's `selfattn`, without embedding and classifier; the loss is a product with a cotangent."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        layout, width = "transmil_selfattn", case.config["dim"]
        module = _build(case, layout, 1).clone(feature_layer="none")
        state = {f"online_encoder.{name}": value for name, value in case.state_dict().items()}
        state |= {"predictor.weight": np.zeros((1, width)), "predictor.bias": np.zeros(1)}
        params = import_state_dict(module, state, layout)
        x = case.input("x").reshape(1, -1, width)
        rows = x.shape[1]
        bags = stack_bags(x, [rows], bucket)
        cotangent = _cotangent(case, (1, width))

        @jax.jit
        def run(params: Any, features: Any) -> Any:
            def loss(params: Any, features: Any) -> Any:
                bag = jax.tree.map(lambda leaf: leaf[0], bags).replace(features=features)
                prediction = module.apply({"params": params}, bag)
                return jnp.sum(prediction.embedding * cotangent[0]), prediction

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, features)

        (loss, prediction), (grads, to_input) = run(params, bags.features[0])
        attention = prediction.aux["class_attention"][:, :, :rows]
        published = export_state_dict(module, grads, layout)
        return Answer(
            {
                "out/loss": loss,
                "out/embedding": prediction.embedding,
                "out/attn_layer1": attention[0],
                "out/attn_layer2": attention[1],
            }
            | _input_gradient("x", to_input[:rows])
            | gradient_entries({name.removeprefix("online_encoder."): value for name, value in published.items()})
        )


def _cotangent(case: Case, shape: tuple[int, ...]) -> np.ndarray:
    return fill.input_array("cotangent", shape, case.meta["salt"])


class Nystrom:
    """The attention layer alone."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config, state = case.config, case.state_dict()
        x = case.input("x").reshape(-1, config["dim"])
        num_tokens = len(x)
        cotangent = _cotangent(case, (1, *x.shape))[0]
        behind = ((0, (bucket or num_tokens) - num_tokens), (0, 0))
        x, cotangent = np.pad(x, behind), np.pad(cotangent, behind)  # the layer's contract: rows behind are zero
        settings = {"num_landmarks": config["landmarks"], "iterations": config["pinv_iterations"]}

        def weights_of(state: Any) -> NystromWeights:
            output = Affine(state["to_out.0.weight"].T, state["to_out.0.bias"])
            return NystromWeights(state["to_qkv.weight"].T, output, state["res_conv.weight"][:, 0, :, 0].T)

        @jax.jit
        def run(state: Any, x: Any, count: Any) -> Any:
            def loss(state: Any, x: Any) -> Any:
                out = nystrom_attention(x, count, weights_of(state), **settings)
                return jnp.sum(jnp.where(jnp.arange(len(x))[:, None] < count, out * cotangent, 0)), out

            weights = weights_of(state)
            marks, _, similarity = landmarks(x, count, weights, settings["num_landmarks"])
            identity = jnp.broadcast_to(jnp.eye(len(marks[0])), similarity.shape)
            inverse = apply_pseudo_inverse(similarity, identity, settings["iterations"])
            row = first_token_attention(x, count, weights, **settings)
            keys = jnp.split(x @ weights.qkv, 3, axis=1)[1].reshape(len(x), weights.num_heads, -1).transpose(1, 0, 2)
            padding = front_padding(count, settings["num_landmarks"])
            ones = jnp.ones((len(x), 1))
            real_mass = jax.vmap(lambda marks, keys: attend_with_padding(marks, keys, ones, count, padding))(
                marks, keys
            )
            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, x), row, inverse, 1 - real_mass[..., 0]

        ((loss, out), (grads, to_input)), row, inverse, mass = run(state, x, jnp.int32(num_tokens))
        out = np.asarray(out)[:num_tokens]
        values = {
            "loss": loss,
            "out": out,
            "out_first_last_4_rows": np.concatenate([out[:4], out[-4:]]),
            "out_row_norm": np.linalg.norm(out, axis=1),
            "attn_first_row": row[:, :num_tokens],
            "attn3_front_padding_mass": mass,
            "pinv": inverse[0],
            "pinv_diagonal": jnp.diagonal(inverse, axis1=1, axis2=2),
        }
        answer = Answer(
            {f"out/{key}": value for key, value in values.items()} | _input_gradient("x", to_input[:num_tokens])
        )
        answer.values |= gradient_entries({name: np.asarray(grads[name]) for name in case.meta["params"]})
        return answer


class Position:
    """The position layer alone, on a class token and a full square."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        x = case.input("x").reshape(-1, case.config["dim"])
        num_tokens = len(x)
        behind = ((0, (bucket or num_tokens) - num_tokens), (0, 0))
        cotangent = np.pad(_cotangent(case, (1, *x.shape))[0], behind)
        x = np.pad(x, behind, constant_values=0.0 if bucket is None else 7.0)
        layers = [name for name in ("proj", "proj1", "proj2") if f"{name}.weight" in case.meta["params"]]

        def loss(state: Any, x: Any) -> Any:
            convolutions = [
                Affine(state[f"{name}.weight"].transpose(2, 3, 1, 0), state[f"{name}.bias"]) for name in layers
            ]
            out = jnp.concatenate([x[:1], position_encoding(x[1:], jnp.int32(num_tokens - 1), convolutions)])
            return jnp.sum(out * cotangent), out

        state = case.state_dict()
        (value, out), (grads, to_input) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state, x)
        answer = Answer({"out/loss": value, "out/out": out[:num_tokens]} | _input_gradient("x", to_input[:num_tokens]))
        answer.values |= gradient_entries({name: np.asarray(grads[name]) for name in case.meta["params"]})
        return answer


class Optimizer:
    """A trajectory with given gradients. Only tensors with two or more axes are decayed."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        settings = OptimizerSettings(
            "lookahead_radam",
            b1=config["betas"][0],
            b2=config["betas"][1],
            eps=config["eps"],
            lookahead_steps=config["lookahead_k"],
            lookahead_alpha=config["lookahead_alpha"],
            decay_min_axes=2,
        )
        optimizer = make(settings)
        params = {name: jnp.asarray(value) for name, value in case.state_dict().items()}
        number = np.arange(config["steps"])
        gradients = {
            name: case.input(f"grad/{name}")
            * (1 + number % 3).reshape(-1, *(1,) * params[name].ndim).astype(np.float32)
            for name in params
        }

        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(
                gradient, state, params, lr=config["lr"], weight_decay=config["weight_decay"]
            )
            params = optax.apply_updates(params, updates)
            return (params, state), params

        _, trajectory = jax.lax.scan(step, (params, optimizer.init(params)), gradients)
        return Answer({f"out/{name}": values for name, values in trajectory.items()})


ADAPTERS = {
    ("transmil", "original"): Model(),
    ("transmil", "small"): Model(),
    ("transmil", "padded_batch"): Model(),
    ("transmil", "selfattn"): SelfAttention(),
    ("transmil", "nystrom"): Nystrom(),
    ("transmil", "ppeg"): Position(),
    ("transmil", "optimizer"): Optimizer(),
}
