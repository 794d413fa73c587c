"""How DTFD-MIL is trained (Zhang et al. 2022): two tiers with a loss each, in one step.

L1, the mean over a bag's groups of the task's loss on their logits, moves tier 1; L2, that on the bag's logits, moves tier 2, which reads
what tier 1 distilled BEFORE its update, as a constant. So one forward pass serves both, and the gradient of L1 + L2 is that of each
tier's own loss. Every network (dimension reduction, attention, classifier, tier 2) has an optimiser of its own, by which
`optimizer.clip_norm` limits its gradient on its own, as the reference does; its two Adams act on each parameter by itself.

With `aggregator.joint` there is one loss, tier1_weight L1 + (1 - tier1_weight) L2, which moves all, and one gradient to clip.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp

from mil_jax.aggregators.dtfd import DTFD
from mil_jax.aggregators.reembedding import Reembedded
from mil_jax.bags import Prediction
from mil_jax.errors import ConfigError
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.supervised import COVARIATES, Supervised
from mil_jax.tasks.base import Task
from mil_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class TwoTiers(Supervised):
    """See the module's docstring; settings as for `Supervised`. The task's loss must be the cross entropy."""

    name: str = "dtfd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task.loss_name != "cross_entropy":
            raise ConfigError(
                f"task.loss_name={self.task.loss_name!r} does not go with DTFD, which ranks instances by a softmax over the "
                "classes; use 'cross_entropy'"
            )
        if self.task.column_names:
            raise ConfigError(
                f"task.name={self.task.name} has several label columns, and DTFD ranks instances by one softmax over the classes: use "
                "another aggregator"
            )

    def step(
        self, state: TrainState, batch: Batch, extras: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of both tiers. Metrics: "loss_tier1", "loss_tier2", and "loss", their sum (weighted if joint)."""
        inputs = self._inputs(state, batch, key)

        def loss_of(params: PyTree) -> tuple[Array, tuple[Array, Array]]:
            predictions = self._predictions(params, state.hyper, batch, inputs)
            tiers = tier_losses(inputs.task, predictions, batch.targets, inputs.weights)
            return self._total(tiers, state.hyper), tiers

        (loss, tiers), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        gradients = batch.averaged(gradients)
        updates, optimizer = {}, {}
        for name, own in self._networks(gradients).items():
            updates[name], optimizer[name] = self.optimizer.update(
                own,
                state.optimizer[name],
                self._networks(state.params)[name],
                lr=extras["lr"],
                weight_decay=state.hyper["optimizer.weight_decay"],
            )
        params = self._moved(state.params, self._as_params(updates))
        metrics = {"loss": loss, "loss_tier1": tiers[0], "loss_tier2": tiers[1]}
        return state.replace(step=state.step + 1, params=params, optimizer=optimizer), metrics

    def _fresh_optimizer(self, params: PyTree) -> PyTree:
        return {name: self.optimizer.init(own) for name, own in self._networks(params).items()}

    @property
    def _tiers(self) -> DTFD:
        return cast(DTFD, self._aggregator)

    def _total(self, tiers: tuple[Array, Array], hyper: dict[str, Array]) -> Array:
        if not self._tiers.joint:
            return tiers[0] + tiers[1]
        weight = hyper.get("aggregator.tier1_weight", self._tiers.tier1_weight)
        return weight * tiers[0] + (1.0 - weight) * tiers[1]

    def _networks(self, tree: PyTree) -> dict[str, PyTree]:
        """The parts of a tree of parameters that are clipped on their own; a re-embedding is one of them."""
        if self._tiers.joint:
            return {"all": tree}
        if isinstance(self.module, Reembedded):
            beside = {name: value for name, value in tree.items() if name != "aggregator"}
            return {**beside, **tree["aggregator"]}
        return dict(tree)

    def _as_params(self, networks: dict[str, PyTree]) -> PyTree:
        """The inverse of `_networks`."""
        if self._tiers.joint:
            return networks["all"]
        if isinstance(self.module, Reembedded):
            own = dict(networks)
            beside = {name: own.pop(name) for name in ("reembed", COVARIATES) if name in own}
            return {**beside, "aggregator": own}
        return networks


def tier_losses(task: Task, predictions: Prediction, targets: Array, weights: Array) -> tuple[Array, Array]:
    """L1 and L2, means over the bags of a batch [B]; in L1 every group has its bag's label, empty groups too."""
    groups = predictions.aux["group_logits"]  # [B, 1, G, C]
    count = groups.shape[1] * groups.shape[2]
    per_group = Prediction(groups.reshape(-1, groups.shape[-1]))
    tier1 = task.loss(per_group, jnp.repeat(targets, count, axis=0), jnp.repeat(weights, count))
    return tier1, task.loss(predictions, targets, weights)
