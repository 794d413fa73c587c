"""Cases of DSMIL: one forward and backward pass, a few steps of its optimiser, and the choice of its thresholds."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mil_jax import aggregators
from mil_jax.aggregators import dsmil
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.strategies.base import Steps
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.optimizers import OptimizerSettings, make
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics import classification
from tests.parity import fill
from tests.parity.adapters.base import (
    Answer,
    bag_features,
    class_targets,
    classification_task,
    gradient_entries,
    named_as_stored,
    stack_bags,
)
from tests.parity.case import Case

_FIELDS = {  # the case's name of a setting -> ours
    "act": "feature_activation",
    "aux_alpha": "max_weight",
    "embed": "feature_dim",
    "main_alpha": "bag_weight",
    "nonlinear": "nonlinear_query",
    "q_dim": "query_dim",
}
_OPTIMIZERS = {"torch.optim.Adam": "adam", "torch.optim.AdamW": "adamw"}


def build(case: Case) -> nn.Module:
    """The aggregator that the case's config describes."""
    config = case.config
    name, fields = aggregators.variants()[case.variant]
    settings = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    if isinstance(config.get("passing_v"), bool):
        settings["value"] = "relu" if config["passing_v"] else "identity"
    for stream in ("bag", "max"):
        if weight := re.search(rf"([\d.]+)\*\w+\({stream}\)", config.get("loss", "")):
            settings.setdefault(f"{stream}_weight", float(weight[1]))
    return aggregators.create(name, config["n_classes"], **{**fields, **settings})


def _task(case: Case) -> Classification:
    label = case.config["label"] if "label" in case.config else case.config["labels"][0]
    multi_hot = isinstance(label, list)
    return classification_task("bce_logits" if multi_hot else "ce", case.config["n_classes"])


def _params(case: Case, module: nn.Module) -> Any:
    """Real weights may hold a part of the model only: the others are then those of the rule."""
    by_rule = fill.parameters(case.meta["params"], case.meta["salt"])
    return import_state_dict(module, by_rule | case.state_dict(), case.variant)


@cache
def _program(module: nn.Module, task: Classification) -> Any:
    """Compiled once per model and shape: the loss of B bags with its parts and predictions, and its gradient."""

    def loss(params: Any, bags: Any, targets: Any) -> Any:
        weights = jnp.ones(len(targets))
        predictions = jax.vmap(lambda bag: module.apply({"params": params}, bag))(bags)
        averaged = jax.vmap(lambda bag: module.clone(prediction="mean_probability").apply({"params": params}, bag))(
            bags
        )
        parts = {
            f"{stream}_loss": task.loss(
                predictions.replace(logits=predictions.aux[f"{stream}_logits"]), targets, weights
            )
            for stream in ("bag", "max")
        }
        parts["loss_v1"] = module.clone(loss="streams").training_loss(task, predictions, targets, weights)
        parts["prob_average"] = jax.nn.sigmoid(averaged.logits)
        return module.training_loss(task, predictions, targets, weights), (predictions, parts)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


class DsmilAdapter:
    """Answers cases about single bags, and trajectories of the optimiser."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [bag_features(case, name).shape[1] for name in case.meta["inputs"]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        return self._steps(case, bucket) if "optimizer" in case.config else self._pass(case, bucket)

    def _pass(self, case: Case, bucket: int | None) -> Answer:
        module, task, features = build(case), _task(case), bag_features(case)
        rows, num_bags = features.shape[1], len(features)
        bags = stack_bags(features, case.config.get("lengths") or [rows] * num_bags, bucket)
        targets = class_targets(task, case.config["label"], num_bags)
        (loss, (prediction, parts)), grads = _program(module, task)(_params(case, module), bags, targets)
        attention, scores = (x[..., :rows].swapaxes(1, 2) for x in (prediction.attention, prediction.scores))
        values = {
            "logits": prediction.logits,
            "prob": task.probabilities(np.asarray(prediction.logits)),
            "attention": attention,
            "attention_raw": scores * math.sqrt(module.query_dim),
            "bag_embedding": prediction.embedding,
            "instance_logits": prediction.instance_logits[:, :rows],
            "teacher_score": jnp.max(prediction.instance_logits[:, :rows], axis=-1),
            "critical_index": prediction.aux["critical"],
            "bag_logits": prediction.aux["bag_logits"],
            "max_logits": prediction.aux["max_logits"],
            "loss": loss,
            **parts,
        }
        published = named_as_stored(case, export_state_dict(module, grads, case.variant))
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))

    def _steps(self, case: Case, bucket: int | None) -> Answer:
        module, task, config = build(case), _task(case), case.config
        params = import_state_dict(module, case.state_dict(), case.variant)
        b1, b2 = config["betas"]
        optimizer = make(OptimizerSettings(_OPTIMIZERS[config["optimizer"]], b1=b1, b2=b2, eps=config["eps"]))
        update, state = jax.jit(optimizer.update), optimizer.init(params)
        cosine = Schedule("cosine", epochs=config["T_max"], min_lr=config["eta_min"])
        rates = [cosine(config["lr"], Steps(epoch, config["T_max"], 1))[0] for epoch in range(config["T_max"] + 1)]
        values: dict[str, Any] = {"out/lr_used": rates[: len(config["labels"])], "out/lr_epochs": rates}
        for step, label in enumerate(config["labels"]):
            features = bag_features(case, f"x{step}")
            bags = stack_bags(features, [features.shape[1]], bucket)
            (values[f"out/loss/{step}"], _), grads = _program(module, task)(params, bags, class_targets(task, label, 1))
            updates, state = update(grads, state, params, lr=rates[step], weight_decay=config["weight_decay"])
            params = optax.apply_updates(params, updates)
            for name, value in export_state_dict(module, params, case.variant).items():
                values[f"out/step{step + 1}/{name}"] = value
        return Answer(values)


class ThresholdSelection:
    """Decision thresholds of given scores, and the number that chooses the epoch."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        label = case.input("labels").astype(np.float64) > 0
        score = np.round(1 / (1 + np.exp(-(case.input("scores").astype(np.float64) + label))), 2)
        classes = range(label.shape[1])
        auc = np.array([classification.binary_auc(score[:, c], label[:, c]) for c in classes])
        threshold = np.array(
            [classification.youden_threshold(score[:, c], label[:, c], allow_none_positive=True) for c in classes]
        )
        prediction = score >= threshold
        accuracy = np.mean(np.all(prediction == label, axis=1))
        values = {"label": label, "score": score, "auc": auc, "threshold": threshold, "prediction": prediction}
        values |= {"accuracy_exact_match": accuracy, "model_score": (auc.sum() + accuracy) / 2}
        return Answer({f"out/{key}": value for key, value in values.items()})


ADAPTERS = {("dsmil", variant): DsmilAdapter() for variant in dsmil.VARIANTS} | {
    ("dsmil", "threshold_selection"): ThresholdSelection()
}
