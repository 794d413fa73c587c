"""Cases of CLAM: one forward and backward pass, and its instance loss alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.aggregators import clam
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers.losses import smooth_top1_svm
from mil_jax.tasks.classification import Classification
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
    "attn_dim": "attention_dim",
    "aux_alpha": "instance_weight",
    "bag_weight": "bag_weight",
    "embed": "feature_dim",
    "gate": "gated",
    "k_sample": "num_sampled",
    "main_alpha": "bag_weight",
    "subtyping": "subtyping",
}
_ATTENTION_DIM = {"small": 256, "big": 384}
_INSTANCE_LOSS = {"svm": "svm", "ce": "cross_entropy", None: "none"}


def build(case: Case) -> nn.Module:
    """The aggregator that the case's config describes."""
    config = case.config
    name, fields = aggregators.variants()[case.variant]
    settings = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    if "size" in config:
        settings.setdefault("attention_dim", _ATTENTION_DIM[config["size"]])
    if "inst_loss" in config:
        settings["instance_loss"] = _INSTANCE_LOSS[config["inst_loss"]]
    if config.get("bag_loss") == "svm":
        settings["bag_loss"] = "svm"
    if "pre_dim" in config and config["in_dim"] != config["pre_dim"]:
        settings["pre_feature_dim"] = config["pre_dim"]
    return aggregators.create(name, config["n_classes"], **{**fields, **settings})


@cache
def _program(module: nn.Module, task: Classification) -> Any:
    """Compiled once per model and shape: the loss of B bags with its parts and predictions, and its gradient."""

    def loss(params: Any, bags: Any, targets: Any) -> Any:
        predictions, sown = jax.vmap(lambda bag: module.apply({"params": params}, bag, mutable="intermediates"))(bags)
        weights = jnp.ones(len(targets))
        parts = {"bag_loss": module.bag_loss_value(task, predictions, targets, weights)}
        if module.instance_loss != "none":
            parts["instance_loss"] = module.instance_loss_value(predictions, targets, weights)
        return module.training_loss(task, predictions, targets, weights), (predictions, sown["intermediates"], parts)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


class ClamAdapter:
    """Answers cases about single bags."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [bag_features(case).shape[1]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module, features = build(case), bag_features(case)
        task = classification_task(case.config.get("loss", "ce"), module.num_outputs)
        rows, num_bags = features.shape[1], len(features)
        bags = stack_bags(features, case.config.get("lengths") or [rows] * num_bags, bucket)
        params = import_state_dict(module, case.state_dict(), case.variant)
        targets = class_targets(task, case.config["label"], num_bags)
        (loss, (prediction, sown, parts)), grads = _program(module, task)(params, bags, targets)
        logits = np.asarray(prediction.logits)
        h, instance_logits = sown["instance_features"][0], sown["instance_logits"][0]
        values = {
            "features": h[0, :2],
            "attention_raw": prediction.scores[..., :rows],
            "attention": prediction.attention[..., :rows],
            "bag_embedding": prediction.embedding,
            "logits": logits,
            "prob": task.probabilities(logits),
            "Y_hat": np.argmax(logits, axis=-1),
            "loss": loss,
            **parts,
        }
        top, bottom = (np.asarray(prediction.aux[name]) for name in ("top", "bottom"))  # [B, K, k]
        for c in range(module.num_outputs):
            branch = c if module.branch_per_class else 0
            values[f"top_ids/{c}"], values[f"bottom_ids/{c}"] = top[:, branch], bottom[:, branch]
            values[f"instance_logits/{c}"] = instance_logits[:, :rows, c]
        if "out/inst_preds" in case.arrays:
            values["inst_preds"], values["inst_targets"] = _pseudo_labels(module, prediction.aux, case.config["label"])
        published = named_as_stored(case, export_state_dict(module, grads, case.variant))
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))


def _pseudo_labels(module: nn.Module, aux: Any, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Decisions and pseudo labels of the first bag, class after class."""
    decisions, labels = [], []
    for c in range(module.num_outputs):
        out_of_class = [("top_logits", 0)] if module.subtyping else []
        for name, pseudo_label in [("top_logits", 1), ("bottom_logits", 0)] if c == label else out_of_class:
            decided = np.argmax(aux[name][0, c], axis=-1)
            decisions.append(decided)
            labels.append(np.full_like(decided, pseudo_label))
    return np.concatenate(decisions), np.concatenate(labels)


class SmoothTop1SVM:
    """The loss on given scores and labels."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        scores, labels = config["input_scale"] * case.input("logits"), jnp.asarray(case.arrays["out/labels"])

        def loss(scores: Any) -> Any:
            per_row = smooth_top1_svm(scores, labels, config["alpha"], config["tau"], config["thresh"])
            return jnp.mean(per_row), per_row

        (mean, per_row), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(scores))
        largest = np.sort(scores, axis=1)
        hard = largest[:, -1] - largest[:, -2] >= config["tau"] * np.log(config["thresh"])
        values = {"loss": mean, "loss_per_sample": per_row, "grad_logits": gradient, "hard": hard}
        return Answer(
            {f"out/{key}": value for key, value in values.items()}, {"out/labels": "the labels are given, not computed"}
        )


ADAPTERS = {("clam", variant): ClamAdapter() for variant in (*clam.SB_VARIANTS, *clam.MB_VARIANTS)} | {
    ("clam", "smooth_top1_svm"): SmoothTop1SVM()
}
