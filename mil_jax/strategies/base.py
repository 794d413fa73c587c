"""What a training strategy is: pure functions on pytrees, so that the engine can vmap, map, jit, shard and checkpoint them.

A strategy never loops, fetches or touches files. It sees one replica; the engine adds the replica axis. Whatever it fits to data
(`constants`) comes from that replica's training bags alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.types import AnyArray, Array, PyTree

_LONG = 256  # instances; measured on two cores: at 1,024 a fifth faster, at 64 a little slower


class TrainState(flax.struct.PyTreeNode):
    """The state of one replica.

    step: int32, the number of updates made; keys and schedules read this counter.
    params: what is trained, and what is kept when a validation score improves.
    optimizer: the optimiser's state, and any other state that evaluation does not need.
    hyper: numeric settings by dotted name ("optimizer.lr", "aggregator.dropout"), scalars; replicas may differ in them.
    constants: what was fitted to the training bags on the host (feature moments, class weights); never trained.
    """

    step: AnyArray
    params: PyTree
    optimizer: PyTree
    hyper: dict[str, AnyArray]
    constants: PyTree

    @classmethod
    def ended_with(cls, params: PyTree, num_replicas: int) -> TrainState:
        """The states of replicas that ended with these parameters [R, ...], on the host, as the next phase is given them."""
        return cls(np.zeros(num_replicas, np.int32), params, optimizer={}, hyper={}, constants={})


class Batch(flax.struct.PyTreeNode):
    """B bags of one bucket: `bags` and `targets` have a leading axis [B]; `weights` [B] is 0 where a place holds no bag.

    axis: of the mesh, where devices share a batch; each then has the `bags` of its own places only, and a strategy computes the loss
    from the `gathered` predictions of all, and moves by the `averaged` gradients.
    """

    bags: Bag
    targets: Array
    weights: Array
    axis: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def places(self) -> Array:
        """int32: which places of the batch `bags` holds."""
        count = self.bags.mask.shape[0]
        first = jax.lax.axis_index(self.axis) * count if self.axis else 0
        return first + jnp.arange(count)

    def gathered(self, tree: PyTree) -> PyTree:
        """For all B places what each device has for its own, along the leading axis."""
        if self.axis is None:
            return tree
        return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis, tiled=True), tree)

    def averaged(self, gradients: PyTree) -> PyTree:
        """The gradients of a loss that was computed from gathered predictions. Each device takes the derivative of the losses of
        all devices, which are the same, so the sum is their number too large.
        """
        return gradients if self.axis is None else jax.lax.pmean(gradients, self.axis)


@dataclass(frozen=True)
class TrainingBags:
    """The training part of one replica, on the host.

    targets: [num_training_bags, ...]. moments: computes the mean and the standard deviation [*F] of all instances, when asked.
    covariates: [num_training_bags, V], NaN = not known, or None.
    """

    targets: np.ndarray
    moments: Callable[[], tuple[np.ndarray, np.ndarray]]
    covariates: np.ndarray | None = None


@dataclass(frozen=True)
class Steps:
    """The updates of one epoch of one replica: `count` of them, in epoch `epoch` of `epochs` (both counted from 0)."""

    epoch: int
    epochs: int
    count: int


class LearningRate(Protocol):
    """A schedule: the learning rates float64 [steps.count] of one epoch, from the base rate."""

    def __call__(self, lr: float, steps: Steps) -> np.ndarray:
        """See the class."""


class Strategy(Protocol):
    """How parameters move."""

    @property
    def name(self) -> str:
        """What the phase is called, in progress and in the run folder."""

    def constants(self, training: TrainingBags) -> PyTree:
        """Whatever is fitted to the training bags, as host arrays."""

    def init(
        self, key: Array, bag: Bag, hyper: dict[str, Array], constants: PyTree, previous: TrainState | None
    ) -> TrainState:
        """A fresh state; `previous` is the state that the strategy of the phase before ended with."""

    def step(
        self, state: TrainState, batch: Batch, extras: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update. `extras` is this step's row of `schedule`; the metrics are scalars, among them "loss"."""

    def predict(self, state: TrainState, bag: Bag) -> Prediction:
        """The prediction for one bag, without dropout."""

    def schedule(self, hyper: dict[str, float], sizes: np.ndarray, steps: Steps) -> dict[str, np.ndarray]:
        """Host, float64: what changes from step to step, each [count]. `sizes` [count, B]: instances of the bags to come."""


class Analysis(Protocol):
    """A strategy that trains nothing: it looks at the training bags of each run, with the parameters that the phase before ended with."""

    @property
    def name(self) -> str:
        """What the phase is called."""

    def constants(self, training: TrainingBags) -> PyTree:
        """Whatever is fitted to the training bags, as host arrays."""

    def predict(self, state: TrainState, bag: Bag) -> Prediction:
        """What is seen of a bag, as logits of any shape."""

    def analyze(self, seen: np.ndarray) -> AnalysisResult:
        """Host: what comes of it. seen: [n, ...], of the n training bags of one run."""


@dataclass(frozen=True)
class AnalysisResult:
    """params: what the next phase is given, a tree of arrays. per_bag: by name [n, ...], of each training bag. facts: numbers to report."""

    params: PyTree
    per_bag: dict[str, np.ndarray]
    facts: dict[str, float]


def map_bags(function: Callable[..., Any], bags: Bag, *others: PyTree, at_a_time: int = 0) -> PyTree:
    """`function` over the leading axis of its arguments. One bag is not vmapped: a batched product of one is slower. Neither are long
    bags on a CPU: one after another they stay in its cache.

    at_a_time: so many bags after so many others, of which the results alone are kept: for a gradient they are computed once more.
    Results and gradients are those of all at once. 0: all.
    """
    if 0 < at_a_time < bags.mask.shape[0]:
        again = jax.checkpoint(lambda arguments: function(*arguments))
        return jax.lax.map(again, (bags, *others), batch_size=at_a_time)
    if bags.mask.shape[0] == 1:
        result = function(*jax.tree.map(lambda x: x[0], (bags, *others)))
        return jax.tree.map(lambda x: x[None], result)
    if bags.mask.shape[1] > _LONG and jax.default_backend() == "cpu":
        return jax.lax.map(lambda arguments: function(*arguments), (bags, *others))
    return jax.vmap(function)(bags, *others)
