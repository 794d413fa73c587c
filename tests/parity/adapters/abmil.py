"""Cases of ABMIL and of mean and max pooling: one forward and backward pass, or a few steps of an optimiser."""

from __future__ import annotations

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mil_jax import aggregators
from mil_jax.aggregators import abmil, pooling
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.strategies.optimizers import OptimizerSettings, make
from mil_jax.tasks.classification import Classification
from tests.parity.adapters.base import (
    Answer,
    class_targets,
    classification_task,
    gradient_entries,
    named_as_stored,
    stack_bags,
)
from tests.parity.case import Case

_FIELDS = {  # the case's name of a setting -> ours
    "act": "feature_activation",
    "attn_act": "attention_activation",
    "attn_bias": "attention_bias",
    "attn_dim": "attention_dim",
    "embed": "feature_dim",
    "gated": "gated",
    "L": "attention_dim",
    "M": "feature_dim",
}
_OPTIMIZERS = {"torch.optim.Adam": "adam", "torch.optim.AdamW": "adamw"}


def build(case: Case) -> nn.Module:
    """The aggregator that the case's config describes."""
    name, fields = aggregators.variants()[case.variant]
    known = aggregators.default_fields(name)
    settings = {ours: case.config[theirs] for theirs, ours in _FIELDS.items() if case.config.get(theirs) is not None}
    settings = {key: value for key, value in settings.items() if key in known}
    return aggregators.create(name, _num_outputs(case), **{**fields, **settings})


def _num_outputs(case: Case) -> int:
    if "n_classes" in case.config:
        return case.config["n_classes"]
    return next(shape[0] for name, shape in case.meta["params"].items() if name.startswith("classifier"))


def _task(case: Case) -> Classification:
    return classification_task(case.config.get("loss", "bernoulli"), _num_outputs(case))


def _features(case: Case, name: str) -> np.ndarray:
    """Bags [B, N, D], or images [B, N, height, width, channels]."""
    x = case.input(name)
    if "in_shape" in case.config:
        x = np.moveaxis(x, -3, -1)
    num_axes = 5 if "in_shape" in case.config else 3
    return x.reshape((1,) * (num_axes - x.ndim) + x.shape)


def _lengths(case: Case, features: np.ndarray) -> list[int]:
    return case.config.get("lengths") or [features.shape[1]] * len(features)


@cache
def _program(module: nn.Module, task: Classification) -> Any:
    """Compiled once per model and shape: the loss of B bags with its gradient and predictions."""

    def loss(params: Any, bags: Any, targets: Any) -> Any:
        def predict(bag: Any) -> Any:
            return module.apply({"params": params}, bag, mutable="intermediates")

        predictions, sown = jax.vmap(predict)(bags)
        instance_features = sown.get("intermediates", {}).get("instance_features")
        return task.loss(predictions, targets, jnp.ones(len(targets))), (predictions, instance_features)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


class BagAdapter:
    """Answers cases about single bags and about batches of padded bags."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [_features(case, name).shape[1] for name in case.meta["inputs"]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        return self._steps(case, bucket) if "optimizer" in case.config else self._pass(case, bucket)

    def _pass(self, case: Case, bucket: int | None) -> Answer:
        module, task, features = build(case), _task(case), _features(case, "x")
        lengths, rows = _lengths(case, features), features.shape[1]
        params = import_state_dict(module, case.state_dict(), case.variant)
        targets = class_targets(task, case.config["label"], len(features))
        bags = stack_bags(features, lengths, bucket)
        (loss, (prediction, h)), grads = _program(module, task)(params, bags, targets)
        values = {"loss": loss, "logits": prediction.logits, "bag_embedding": prediction.embedding}
        values |= {"mask": bags.mask[:, :rows], "label": case.config["label"]}
        values |= _class_outputs(task, np.asarray(prediction.logits))
        if prediction.attention is not None:
            values |= {"attention": prediction.attention[:, :rows], "attention_raw": prediction.scores[:, :rows]}
        if "out/attention_raw_unmasked" in case.arrays:
            all_real = stack_bags(features, [rows] * len(features), None)
            (_, (unmasked, _)), _ = _program(module, task)(params, all_real, targets)
            values["attention_raw_unmasked"] = unmasked.scores
        if h is not None:
            values |= {"features": h[0][:, :rows], "features_first_instance": h[0][:, 0]}
        if prediction.instance_logits is not None:
            z = prediction.instance_logits[:, :rows]
            values |= {"instance_logits": z, "instance_prob": jax.nn.softmax(z, axis=-1)}
        if "chosen" in prediction.aux:
            values |= {"argmax": prediction.aux["chosen"], "top_index": prediction.aux["chosen"]}
        published = named_as_stored(case, export_state_dict(module, grads, case.variant))
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))

    def _steps(self, case: Case, bucket: int | None) -> Answer:
        module, task, config = build(case), _task(case), case.config
        params = import_state_dict(module, case.state_dict(), case.variant)
        b1, b2 = config["betas"]
        optimizer = make(OptimizerSettings(_OPTIMIZERS[config["optimizer"]], b1=b1, b2=b2, eps=config["eps"]))
        update = jax.jit(optimizer.update)
        state = optimizer.init(params)

        def loss_and_gradient(params: Any, step: int) -> Any:
            features = _features(case, f"x{step}")
            bags = stack_bags(features, _lengths(case, features), bucket)
            (loss, _), grads = _program(module, task)(params, bags, class_targets(task, config["labels"][step], 1))
            return loss, grads

        values: dict[str, Any] = {}
        for step in range(len(config["labels"])):
            values[f"out/loss/{step}"], grads = loss_and_gradient(params, step)
            updates, state = update(grads, state, params, lr=config["lr"], weight_decay=config["weight_decay"])
            params = optax.apply_updates(params, updates)
            for name, value in named_as_stored(case, export_state_dict(module, params, case.variant)).items():
                values[f"out/step{step + 1}/{name}"] = value
        values["out/loss/after"], _ = loss_and_gradient(params, 0)
        return Answer(values)


def _class_outputs(task: Classification, logits: np.ndarray) -> dict[str, Any]:
    """Probabilities and decisions as the references give them: one number for a single sigmoid."""
    prob = task.probabilities(logits)
    if task.loss_name == "bernoulli":
        return {"prob": prob[:, 1], "Y_hat": prob[:, 1] >= 0.5}
    return {"prob": prob, "Y_hat": np.argmax(logits, axis=-1)}


ADAPTERS = {
    ("abmil", variant): BagAdapter() for variant in (*abmil.VARIANTS, *pooling.MEAN_VARIANTS, *pooling.MAX_VARIANTS)
}
