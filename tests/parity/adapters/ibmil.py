"""Cases of IBMIL: every backbone with its dictionary, forward and backward, and the clustering that makes one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.aggregators.dtfd import _Tier2
from mil_jax.bags import Prediction
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers import masked
from mil_jax.layers.deconfounding import Deconfounding
from mil_jax.strategies.base import Batch
from mil_jax.strategies.ibmil import BRANCH, IBMIL
from mil_jax.strategies.ibmil_clusters import clusters
from mil_jax.strategies.ibmil_settings import DICTIONARY, IBMILSettings
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.published_checkpoints import export_params, import_params
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification
from tests.parity.adapters.base import Answer, bag_features, classification_task, gradient_entries, stack_bags
from tests.parity.adapters.mhim import recording, state_of
from tests.parity.case import Case

_PLAIN = {"feature_layer": "none", "dropout": 0.0, "initializer": "torch"}
_ATTENTION = {"gated": False, "attention_dropout": 0.0}
_BACKBONES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # As variants begin: aggregator, its fields, its published form, the layout with the branch.
    "abmil": ("abmil", {**_PLAIN, **_ATTENTION, "attention_dim": None}, "pathgene", "ibmil_abmil"),
    "mhim": ("abmil", {**_ATTENTION, "dropout": 0.0, "attention_dim": 128}, "mhim_dattention", "ibmil_mhim"),
    "dsmil": ("dsmil", {"initializer": "torch", "prediction": "mean_probability"}, "official", "ibmil_dsmil"),
    "transmil": ("transmil", {"attention_dropout": 0.0}, "transmil_original", "ibmil_transmil"),
    "mean": ("mean_pooling", _PLAIN, "mean_pooling", "ibmil_mean_pooling"),
    "max": ("max_pooling", {**_PLAIN, "choose": "feature"}, "max_pooling", "ibmil_max_pooling"),
}


def backbone(case: Case) -> str:
    return case.variant.split("_")[0]


def _task(case: Case) -> tuple[Classification, Any]:
    if "label" in case.config:
        return classification_task("ce", case.config["n_classes"]), jnp.array([case.config["label"]])
    label = case.arrays["out/label"]
    if label.shape[-1] == 1:
        return classification_task("bernoulli", 1), jnp.asarray(label.reshape(1), jnp.int32)
    return classification_task("bce_logits", label.shape[-1]), jnp.asarray(label, jnp.float32)


def _strategy(case: Case) -> tuple[Supervised, str]:
    """Of the case, plain where there is no dictionary; and its published form or layout."""
    config = case.config
    name, fields, variant, layout = _BACKBONES[backbone(case)]
    fields = dict(fields)
    if "nonlinear" in config:
        fields["nonlinear_query"] = bool(config["nonlinear"])
    if "act" in config:
        fields["feature_activation"] = config["act"]
    module = aggregators.create(name, config["n_classes"], **fields)
    if not config["k"]:
        return Supervised(module, _task(case)[0], recording(), Schedule()), variant
    confounders = IBMILSettings(
        str(config["k"]),
        mode="specific" if config.get("mode") == "specific" else "agnostic",
        merge=config.get("c_merge") or "cat",
        merged_norm=config.get("mode") == "nn",
        query_dim=config.get("c_dim", 128),
        learn_dictionary=bool(config.get("c_learn")),
    )
    return IBMIL(module, _task(case)[0], recording(), Schedule(), confounders=confounders), layout


class Backbone:
    """A forward and backward pass of an aggregator with or without its dictionary."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][-2]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        strategy, variant = _strategy(case)
        module: Any = strategy.module
        targets, size, state = _task(case)[1], self.bag_sizes(case)[0], case.state_dict()
        branched = isinstance(strategy, IBMIL)
        params: Any = import_params(strategy, state, variant) if branched else import_state_dict(module, state, variant)
        bags = stack_bags(bag_features(case), [size], bucket)
        batch = Batch(bags=bags, targets=targets, weights=jnp.ones(1))

        @jax.jit
        def run(params: Any) -> Any:
            def loss(params: Any) -> Any:
                inputs = strategy._inputs(state_of(params), batch, jax.random.key(0))
                predictions = strategy._predictions(params, {}, batch, inputs)
                streams = {
                    f"{name}_loss": strategy.task.loss(predictions.replace(logits=logits), targets, jnp.ones(1))
                    for name in ("bag", "max")
                    if (logits := predictions.aux.get(f"{name}_logits")) is not None
                }
                return strategy._loss(predictions, batch, inputs), (predictions, streams)

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, (prediction, streams)), gradients = run(params)
        aux = prediction.aux
        values = {
            **streams,
            "logits": prediction.logits,
            "prob": jax.nn.sigmoid(prediction.logits),
            "test_prob": jax.nn.sigmoid(prediction.logits),  # of DSMIL
            "bag_feature": prediction.embedding,
            "loss": loss,
            "label": case.arrays.get("out/label"),
            "cls_before_norm": aux.get("unnormalized_embedding"),
            "confounder_attention": None if "dictionary_attention" not in aux else aux["dictionary_attention"][0],
            **{name: aux.get(name) for name in ("critical", "bag_logits", "max_logits")},
            "instance_logits": None if prediction.instance_logits is None else prediction.instance_logits[0, :size],
            "attention": None if prediction.attention is None else prediction.attention[0].T[:size],
            "attention_raw": None if prediction.scores is None else prediction.scores[0].T[:size],
        }
        published = (
            export_params(strategy, gradients, variant) if branched else export_state_dict(module, gradients, variant)
        )
        return Answer({f"out/{key}": x for key, x in values.items() if x is not None} | gradient_entries(published))


class SecondTier:
    """DTFD's second tier on given distilled rows, or its classifier on one."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        x, state, (task, targets) = case.input("x"), case.state_dict(), _task(case)
        bag = jax.tree.map(lambda leaf: leaf[0], stack_bags(x[None], [len(x)], bucket))
        classifier = next(name.removesuffix(".weight") for name in state if name in _CLASSIFIERS)
        layers = {place: name for place, name in _TIER2.items() if f"{name}.weight" in state}
        own = {"query": "W_q", "key": "W_k", "classifier": classifier} if case.config["k"] else {}
        widths = {place: len(state[f"{name}.weight"]) for place, name in layers.items()}
        tier = _Tier2(task.num_outputs, widths.get("v", 1), "torch")
        branch = Deconfounding(task.num_outputs, len(state["W_q.weight"]) if own else 1)

        def affine(name: str) -> dict[str, Any]:
            return {"kernel": jnp.asarray(state[f"{name}.weight"].T), "bias": jnp.asarray(state[f"{name}.bias"])}

        last = affine(classifier)
        last["kernel"] = last["kernel"][: x.shape[1]]  # with a branch it is not used, and narrower
        attention_layers = {place: affine(name) for place, name in layers.items()}
        params: dict[str, Any] = {"tier2": {"attention": attention_layers, "classifier": last}}
        if own:
            params[BRANCH] = {layer: affine(name) for layer, name in own.items()}
            params[DICTIONARY] = jnp.asarray(state["confounder_feat"])

        @jax.jit
        def run(params: Any) -> Any:
            def loss(params: Any) -> Any:
                rows, attention = masked.zero_padding(bag.features, bag.mask), bag.mask.astype(jnp.float32)
                if layers:
                    attends, last = tier.apply({"params": params["tier2"]}, x.shape[1])
                    attention = masked.softmax(attends.scores(rows), bag.mask)
                embedding, entries = attention @ rows, jnp.zeros(0)
                if own:
                    dictionary = jax.lax.stop_gradient(params[DICTIONARY])
                    logits, embedding, entries = branch.apply({"params": params[BRANCH]}, embedding, dictionary)
                else:
                    logits = last(embedding)
                value = task.loss(Prediction(logits[None]), targets, jnp.ones(1))
                return value, {
                    "logits": logits,
                    "bag_feature": embedding,
                    "confounder_attention": entries,
                    "attention": attention[: len(x)],
                }

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, values), gradients = run(params)
        tier2, published = gradients["tier2"], {"confounder_feat": gradients[DICTIONARY]} if own else {}
        found = {name: tier2["attention"][place] for place, name in layers.items()}
        found |= {name: gradients[BRANCH][layer] for layer, name in own.items()} or {classifier: tier2["classifier"]}
        for name, layer in found.items():
            published |= {f"{name}.weight": np.asarray(layer["kernel"]).T, f"{name}.bias": layer["bias"]}
        values |= {"loss": loss, "label": case.arrays["out/label"]}
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))


_CLASSIFIERS = ("classifier.weight", "classifier.fc.weight", "fc.weight")
_TIER2 = {
    "v": "attention.attention_V.0",
    "u": "attention.attention_U.0",
    "w": "attention.attention_weights",
}


class KMeans:
    """Clusters of given embeddings from given starts."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        number, start = case.config["k"], case.arrays["out/init"]
        centres = case.input("centres")[np.arange(case.config["n"]) % number]
        features = case.input("features") + np.float32(1.5) * centres
        found = clusters(features, number, start)
        values = {"features": features, "init": start, "assignment": found.cluster, "unit_centroids": found.centres}
        return Answer({f"out/{key}": value for key, value in {**values, "dictionary": found.entries}.items()})


_VARIANTS = (
    *(f"abmil_{name}" for name in ("base", "cat", "add", "sub", "cat_learn", "sub_learn", "cat_dim32", "cat_real")),
    *(f"dsmil_{name}" for name in ("base", "agnostic", "specific", "agnostic_nonlinear", "agnostic_real")),
    *(f"transmil_{name}" for name in ("base", "normed", "nn", "normed_small")),
    *(f"{pooling}_{merge}" for pooling in ("mean", "max") for merge in ("cat", "add", "sub")),
    "mhim_repo",
)
ADAPTERS = {
    **{("ibmil", variant): Backbone() for variant in _VARIANTS},
    **{("ibmil", f"dtfd_{part}"): SecondTier() for part in ("base", "att", "cls", "att_pathgene")},
    ("ibmil", "kmeans"): KMeans(),
}
