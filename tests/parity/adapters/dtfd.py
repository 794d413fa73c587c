"""Cases of DTFD-MIL: both tiers on given partitions, forward and backward; evaluation over several; a few updates."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import aggregators
from mil_jax.aggregators.dtfd import DTFD, group_numbers
from mil_jax.bags import Bag
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, Steps
from mil_jax.strategies.dtfd import TwoTiers, tier_losses
from mil_jax.strategies.lr_schedule import Schedule
from tests.parity.adapters.base import Answer, classification_task, gradient_entries
from tests.parity.case import Case

_FIELDS = {  # the case's name of a setting -> ours
    "dim": "feature_dim",
    "attention_dim": "attention_dim",
    "num_group": "num_groups",
    "num_residual": "num_residual",
    "num_mean_inference": "num_partitions",
}
_DISTILLATIONS = {"AFS": "pooled", "MaxS": "max", "MaxMinS": "max_min", "MAS": "max_attention"}
_NETWORKS = {
    "dim_reduction": "dim_reduction",
    "attention": "attention",
    "classifier": "classifier",
    "att_classifier": "tier2",
}


class OnGivenPartitions(DTFD):
    """The partitions are not drawn: column p of the bag's coordinates holds the instances' places in order p."""

    def _ranks(self, bag: Bag, train: bool) -> jax.Array:
        return super()._ranks(bag, train) if bag.coords is None else bag.coords.T


def build(case: Case) -> DTFD:
    """The aggregator that the case's config describes."""
    config = case.config
    settings = {ours: config[theirs] for theirs, ours in _FIELDS.items() if theirs in config}
    settings["distillation"] = _DISTILLATIONS[config["distill"]]
    settings["instances_per_group"] = config.get("instances_per_group", config["total_instance"] // config["num_group"])
    plain = aggregators.create("dtfd", config["n_classes"], **settings)
    fields = {name: getattr(plain, name) for name in ("num_outputs", *aggregators.default_fields("dtfd"))}
    return OnGivenPartitions(**fields)


def _bag(features: np.ndarray, orders: np.ndarray, bucket: int | None) -> Bag:
    """features [n, D], orders [P, n] of instance numbers; padded with NaN and with places that real instances have."""
    n = len(features)
    size = bucket or n
    padded, places = np.full((size, features.shape[1]), np.nan, np.float32), np.zeros((size, len(orders)), np.int32)
    padded[:n], places[:n] = features, np.argsort(orders, axis=1).T
    return Bag(jnp.asarray(padded), jnp.arange(size) < n, jnp.asarray(places))


def _features(case: Case) -> np.ndarray:
    """[n, D], multiplied where the notes say so."""
    factor = re.search(r"x = ([\d.]+) \* rule input", case.meta.get("notes", ""))
    return case.input("x") * np.float32(factor[1] if factor else 1)


def _label(case: Case) -> int:
    if "label" in case.config:
        return int(case.config["label"])
    return int(re.search(r"label (\d+) for every pseudo bag", case.meta["notes"])[1])  # type: ignore[index]


@cache
def _program(module: DTFD) -> Any:
    """Compiled once per model and shape: both losses, all that the module says about one bag, and their gradient."""
    task = classification_task("ce", module.num_outputs)

    def loss(params: Any, bag: Bag, label: Any) -> Any:
        prediction, sown = module.apply({"params": params}, bag, mutable="intermediates")
        batch = jax.tree.map(lambda x: x[None], prediction)
        tiers = tier_losses(task, batch, label[None], jnp.ones(1))
        return sum(tiers), (tiers, prediction, sown["intermediates"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


class OneBag:
    """One forward and backward pass."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module, features, perm = build(case), _features(case), case.arrays["out/perm"]
        n, k = len(features), module.instances_per_group
        params = import_state_dict(module, case.state_dict(), "dtfd")
        bag = _bag(features, perm[None], bucket)
        (_, (tiers, prediction, sown)), grads = _program(module)(params, bag, jnp.int32(_label(case)))
        sown = {name: np.asarray(value[0][0]) for name, value in sown.items()}  # of the one partition
        real = sown["real"]
        activations = sown["activations"][:n]
        values = {
            "perm": np.argsort(np.asarray(bag.coords)[:n, 0]),
            "att_raw": prediction.scores[:n],
            "att": sown["group_attention"][:n],
            "cam_logits": activations,
            "cam_prob": jax.nn.softmax(activations, axis=-1),
            "sub_preds": prediction.aux["group_logits"][0],
            "pseudo_bag_features": sown["group_features"],
            "distilled": sown["distilled"][real],
            "tier2_att": sown["distilled_attention"][real],
            "tier2_logits": prediction.logits,
            "loss_tier1": tiers[0],
            "loss_tier2": tiers[1],
        }
        values["chunk_id"] = _group_numbers(module, bag)[:n]
        if "selected" in sown:
            chosen, real = (x.reshape(module.num_groups, -1) for x in (sown["selected"], real))
            name = "index_att" if module.distillation == "max_attention" else "index_max"
            values[name] = _rows(chosen[:, :k], real[:, :k])
            values["index_min"] = _rows(chosen[:, k:], real[:, k:])
        values |= {f"module_grad_norm_{theirs}": _norm(grads[ours]) for theirs, ours in _NETWORKS.items()}
        published = export_state_dict(module, grads, "dtfd")
        return Answer({f"out/{key}": value for key, value in values.items()} | gradient_entries(published))


def _group_numbers(module: DTFD, bag: Bag) -> np.ndarray:
    return np.asarray(group_numbers(bag.coords[:, 0], bag.num_instances, module.num_groups))


def _rows(numbers: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The numbers selected in each group that has some; one after another where groups have different counts."""
    counts = np.unique(real.sum(axis=1)[real.any(axis=1)])
    return numbers[real].reshape(-1, counts[0]) if len(counts) == 1 else numbers[real]


class Evaluation:
    """The mean over several partitions."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        module, features = build(case), _features(case)
        params = import_state_dict(module, case.state_dict(), "dtfd")
        bag = _bag(features, case.arrays["out/perms"], bucket)
        prediction = jax.jit(module.apply)({"params": params}, bag)
        values = {
            "perms": np.argsort(np.asarray(bag.coords)[: len(features)].T, axis=1),
            "tier1_logits": prediction.aux["group_logits"],
            "tier2_prob_each": jax.nn.softmax(prediction.aux["partition_logits"], axis=-1),
            "tier2_prob": jax.nn.softmax(prediction.logits),
        }
        return Answer({f"out/{key}": value for key, value in values.items()})


class Training:
    """Updates of the strategy itself, on one bag whose label changes."""

    def bag_sizes(self, case: Case) -> list[int]:
        return [case.meta["inputs"]["x"][0]]

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config, module, features = case.config, build(case), _features(case)
        task = classification_task("ce", module.num_outputs)
        b1, b2 = config["betas"]
        settings = optimizers.OptimizerSettings(
            "adam", b1=b1, b2=b2, eps=config["eps"], clip_norm=config["grad_clipping"]
        )
        strategy = TwoTiers(module, task, optimizers.make(settings), Schedule())
        hyper = {name: jnp.float32(config[name.split(".")[1]]) for name in ("optimizer.lr", "optimizer.weight_decay")}
        lr = strategy.schedule({"optimizer.lr": config["lr"]}, np.zeros((1, 1)), Steps(0, 1, 1))["lr"][0]
        before = case.state_dict()
        perms, labels = case.arrays["out/perms"], (np.arange(config["steps"]) + 1) % module.num_outputs
        key = jax.random.key(0)
        state = strategy.init(key, _bag(features, perms[:1], bucket), hyper, {}, None)
        state = state.replace(params=import_state_dict(module, before, "dtfd"))
        step, losses, norms = jax.jit(strategy.step), [], []
        for perm, label in zip(perms, labels):
            bag = _bag(features, perm[None], bucket)
            _, gradient = _program(module)(state.params, bag, jnp.int32(label))
            norms.append([_norm(gradient[ours]) for ours in _NETWORKS.values()])
            batch = Batch(jax.tree.map(lambda x: x[None], bag), jnp.asarray([label], jnp.int32), jnp.ones(1))
            state, metrics = step(state, batch, {"lr": jnp.float32(lr)}, key)
            losses.append([metrics["loss_tier1"], metrics["loss_tier2"]])
        after = export_state_dict(module, state.params, "dtfd")
        values = {
            "perms": perms,
            "loss_tier1": np.array(losses)[:, 0],
            "loss_tier2": np.array(losses)[:, 1],
            "clip_norms": np.array(norms),
        }
        for name, value in after.items():
            values[f"after/{name}"], values[f"delta_norm/{name}"] = value, _norm(value - before[name])
        return Answer({f"out/{key}": value for key, value in values.items()})


ADAPTERS = {("dtfd", variant): OneBag() for variant in _DISTILLATIONS} | {
    ("dtfd", "eval"): Evaluation(),
    ("dtfd", "train_steps"): Training(),
}
