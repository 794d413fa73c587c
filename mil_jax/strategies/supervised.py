"""Plain supervised training: the loss of the task on the bags of a step, one optimiser for all parameters.

The field's setting is one bag a step. Feature normalisation is fitted to the replica's own training bags: `zscore` with their mean
and standard deviation over all instances (a constant column becomes 0), `l2` per instance; of regions, tile by tile. Covariates of a bag,
where there are any, are read by the classifier beside the bag's embedding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mil_jax.aggregators.base import Aggregator
from mil_jax.aggregators.reembedding import Reembedded
from mil_jax.bags import Bag, Prediction
from mil_jax.data.cohort import covariates
from mil_jax.errors import ConfigError
from mil_jax.layers.topk import random_subset
from mil_jax.strategies.base import Batch, LearningRate, Steps, TrainingBags, TrainState, map_bags
from mil_jax.tasks.base import Task
from mil_jax.types import Array, PyTree

NORMALIZATIONS = ("none", "l2", "zscore")
PRECISIONS = ("float32", "bfloat16")
COVARIATES = "covariates"  # an entry of the parameters beside the aggregator's, and of the constants
SAMPLE_STREAM = 2**32 - 1  # folded into a bag's key for the instances drawn from it


class Inputs(NamedTuple):
    """What a step computes its loss from: the bags as the module sees them and a key for each, weights [B] of the losses, the task."""

    bags: Bag
    keys: Array
    weights: Array
    task: Task


@dataclasses.dataclass(frozen=True)
class Supervised:
    """See the module's docstring.

    class_weights: multiply each bag's loss by the inverse frequency of its class in the training part.
    sample_instances: most instances of a bag that a step reads, drawn anew in every step; 0 = all. Predictions read whole bags.
    microbatch_size: of a step, whose activations are kept together; 0 = all. The loss is that of all the bags, and its gradient, too.
    precision: "float32", or "bfloat16": features and parameters are rounded to it for the forward and backward pass. Parameters,
        their updates, softmaxes, selections, attention scores, pseudo-inverses and losses stay float32.
    Reads from `hyper`: "optimizer.lr", "optimizer.weight_decay", and where present "task.*", "aggregator.*", "reembed.*"
    and "train.sample_instances", which may be less than the field, by which shapes are made.
    """

    module: Aggregator
    task: Task
    optimizer: optax.GradientTransformationExtraArgs
    learning_rate: LearningRate
    normalize: str = "none"
    class_weights: bool = False
    sample_instances: int = 0
    microbatch_size: int = 0
    precision: str = "float32"
    name: str = "supervised"

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZATIONS:
            raise ConfigError(f"data.normalize is {self.normalize!r}; choose one of {', '.join(NORMALIZATIONS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"train.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")

    def constants(self, training: TrainingBags) -> dict[str, Any]:
        """{"mean", "scale"} [*F] for zscore, {"class_weights"} [C], {"task": what it learns}, {COVARIATES: mean, scale [V]}; float32."""
        fitted: dict[str, Any] = {}
        if self.normalize == "zscore":
            mean, deviation = training.moments()
            scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
            fitted |= {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
        if self.class_weights:
            fitted["class_weights"] = self.task.class_weights(training.targets)
        if learnt := self.task.fit_targets(training.targets):
            fitted["task"] = learnt
        if training.covariates is not None:
            fitted[COVARIATES] = covariates.fitted(training.covariates)
        return fitted

    def parameter_shapes(self, bag: Bag) -> PyTree:
        """The tree of the shapes of the parameters, without computing any; bag: of shapes. Raises ConfigError where they do not fit."""
        return jax.eval_shape(lambda bag: self._first_params(jax.random.key(0), bag, None), bag)

    def init(
        self, key: Array, bag: Bag, hyper: dict[str, Array], constants: PyTree, previous: TrainState | None
    ) -> TrainState:
        """Fresh parameters, whatever came before."""
        params = self._first_params(key, self._normalized(bag, constants), previous)
        return TrainState(
            step=jnp.int32(0), params=params, optimizer=self._fresh_optimizer(params), hyper=hyper, constants=constants
        )

    def step(
        self, state: TrainState, batch: Batch, extras: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update on the mean loss of the batch."""
        inputs = self._inputs(state, batch, key)

        def loss_of(params: PyTree) -> Array:
            return self._loss(self._predictions(params, state.hyper, batch, inputs), batch, inputs)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, optimizer = self.optimizer.update(
            batch.averaged(gradients),
            state.optimizer,
            state.params,
            lr=extras["lr"],
            weight_decay=state.hyper["optimizer.weight_decay"],
        )
        params = self._moved(state.params, updates)
        return state.replace(step=state.step + 1, params=params, optimizer=optimizer), {"loss": loss}

    def predict(self, state: TrainState, bag: Bag) -> Prediction:
        """The prediction for one bag."""
        return self._apply(state.params, state.hyper, self._normalized(bag, state.constants), None)

    def schedule(self, hyper: dict[str, float], sizes: np.ndarray, steps: Steps) -> dict[str, np.ndarray]:
        """{"lr": [count]}."""
        del sizes
        return {"lr": self.learning_rate(hyper["optimizer.lr"], steps)}

    def _first_params(self, key: Array, bag: Bag, previous: TrainState | None) -> PyTree:
        del previous
        params = fresh_params(self.module, key, bag)
        if bag.covariates is None:
            return params
        # Zeros: a model begins as one without covariates, and a linear map has a gradient there.
        return {**params, COVARIATES: {"kernel": jnp.zeros((len(bag.covariates), self.task.num_outputs))}}

    def _fresh_optimizer(self, params: PyTree) -> PyTree:
        return self.optimizer.init(params)

    def _inputs(self, state: TrainState, batch: Batch, key: Array) -> Inputs:
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch.places)
        bags = batch.bags
        if self.sample_instances:
            bags = map_bags(lambda bag, key: self._sampled(bag, state.hyper, key), bags, keys)
        bags = jax.vmap(lambda bag: self._normalized(bag, state.constants))(bags)
        weights = batch.weights
        if self.class_weights:
            classes = batch.targets if batch.targets.ndim == 1 else jnp.argmax(batch.targets, axis=-1)
            weights = weights * state.constants["class_weights"][classes]
        settings = {name.removeprefix("task."): x for name, x in state.hyper.items() if name.startswith("task.")}
        task = dataclasses.replace(self.task, **settings, **state.constants.get("task", {}))
        return Inputs(bags, keys, weights, task)

    def _predictions(self, params: PyTree, hyper: dict[str, Array], batch: Batch, inputs: Inputs) -> Prediction:
        """For all places of the batch, with dropout."""
        mine = map_bags(
            lambda bag, key: self._apply(params, hyper, bag, key),
            inputs.bags,
            inputs.keys,
            at_a_time=self.microbatch_size,
        )
        return batch.gathered(mine)

    def _moved(self, params: PyTree, updates: PyTree) -> PyTree:
        """The updated parameters; frozen parts stay, whatever decay would do."""
        frozen = {name: params[name] for name in self.module.frozen_parts}
        moved: PyTree = optax.apply_updates(params, updates) | frozen
        return moved

    def _loss(self, predictions: Prediction, batch: Batch, inputs: Inputs) -> Array:
        return self.module.training_loss(inputs.task, predictions, batch.targets, inputs.weights)

    def _apply(
        self, params: PyTree, hyper: dict[str, Array], bag: Bag, key: Array | None, module: Aggregator | None = None
    ) -> Prediction:
        """The prediction of the module, or of another one, with dropout where there is a key."""
        module = self.module if module is None else module
        joined = params
        if COVARIATES in params:
            params = {name: value for name, value in params.items() if name != COVARIATES}
        if self.precision == "bfloat16":
            params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
            bag = bag.replace(features=bag.features.astype(jnp.bfloat16))
        variables: dict[str, Any] = {"params": params}
        groups: dict[str, dict[str, Array]] = {"aggregator": {}, "reembed": {}}
        for name, x in hyper.items():
            group, _, setting = name.partition(".")
            if group in groups:
                groups[group][setting] = x
        variables["hyper"] = groups if isinstance(module, Reembedded) else groups["aggregator"]
        rngs = None if key is None else {"dropout": key}
        prediction: Any = module.apply(variables, bag, train=key is not None, rngs=rngs)
        return self._with_covariates(joined, bag, prediction.replace(logits=prediction.logits.astype(jnp.float32)))

    def _with_covariates(self, params: PyTree, bag: Bag, prediction: Prediction) -> Prediction:
        """The prediction of a linear classifier that reads the covariates beside the bag's embedding: its logits and the covariates'
        part of them. Other streams of an aggregator, of instances or groups, stay as they are.
        """
        if COVARIATES not in params:
            return prediction
        part = bag.covariates @ params[COVARIATES]["kernel"]  # [C]
        aggregator = self._aggregator
        return aggregator.with_bag_logits(prediction, aggregator.bag_logits(prediction) + part)

    @property
    def _aggregator(self) -> Aggregator:
        """The module, or the one behind a re-embedding."""
        return self.module.aggregator if isinstance(self.module, Reembedded) else self.module

    def _sampled(self, bag: Bag, hyper: dict[str, Array], key: Array) -> Bag:
        """The instances that a step reads, in their order: [min(N, sample_instances)]."""
        if bag.neighbors is not None:
            raise ConfigError("train.sample_instances draws instances, and this bag is a graph: leave it at 0")
        most = min(len(bag.mask), self.sample_instances)
        count = jnp.minimum(hyper.get("train.sample_instances", most), most).astype(jnp.int32)
        kept = random_subset(jax.random.fold_in(key, SAMPLE_STREAM), bag.mask, count)
        (rows,) = jnp.nonzero(kept, size=most, fill_value=0)
        return bag.of_instances(rows, jnp.arange(most) < jnp.sum(kept))

    def _normalized(self, bag: Bag, constants: PyTree) -> Bag:
        if bag.covariates is not None:
            bag = bag.replace(covariates=covariates.standardised(bag.covariates, constants[COVARIATES]))
        if self.normalize == "none":
            return bag
        # What is normalised are instances, or the tiles of regions.
        real = bag.mask if bag.part_mask is None else bag.mask[:, None] & bag.part_mask
        # Padding may hold NaN: it is replaced before it is computed with.
        mask = real.reshape(*real.shape, *(1,) * (bag.features.ndim - real.ndim))
        features = jnp.where(mask, bag.features, 0.0)
        if self.normalize == "zscore":
            features = (features - constants["mean"]) * constants["scale"]
        else:
            norm = jnp.sqrt(jnp.sum(features**2, axis=tuple(range(real.ndim, features.ndim)), keepdims=True))
            features = features / jnp.maximum(norm, 1e-12)
        return bag.replace(features=jnp.where(mask, features, 0.0))


def fresh_params(module: Aggregator, key: Array, bag: Bag) -> PyTree:
    """The parameters that training begins with."""
    params = module.init({"params": key}, bag, train=False)["params"]
    return module.starting_from(params)
