"""MHIM-MIL v2 (Tang et al. 2025, arXiv 2509.11526; the code of branch master): what the mask leaves is merged in part.

Between feature layer and the rest of the aggregator, a random share of the student's instances stays as it is; k global queries gather the
others into k tokens (`layers/query_merging.py`), which are put behind them. The queries are a moving average of these tokens. The teacher
never merges, nor do predictions, unless `merge_test`: then the tokens of all instances are added. The instances that stay come first, so
that the bag needs no gather behind its feature layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.dropout import dropout
from mil_jax.layers.initializers import Affine
from mil_jax.layers.instance_masks import MaskCounts
from mil_jax.layers.moving_average import ema_update
from mil_jax.layers.query_merging import QUERIES, QueryMerging
from mil_jax.strategies.base import Batch, Steps, TrainState, map_bags
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.supervised import Inputs
from mil_jax.types import Array, PyTree

MERGING = "merging"  # the entry of the parameters


@dataclasses.dataclass(frozen=True)
class MergingMHIM(MHIM):
    """See the module's docstring; settings as for `MHIM`. The parameters are the aggregator's and, as MERGING, the merging's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.module.feature_layer != "linear" or self.module.input_norm:
            raise ConfigError(
                "strategy.merge_queries merges instances behind the feature layer: it needs an aggregator with "
                "aggregator.feature_layer=linear, and neither reembed.name nor aggregator.input_norm"
            )

    def parameter_shapes(self, bag: Bag) -> PyTree:
        """See `MHIM`."""
        return {**super().parameter_shapes(bag), MERGING: jax.eval_shape(self._new_merging, jax.random.key(0))}

    def init(
        self, key: Array, bag: Bag, hyper: dict[str, Array], constants: PyTree, previous: TrainState | None
    ) -> TrainState:
        """As `MHIM`, with fresh queries."""
        state = super().init(key, bag, hyper, constants, previous)
        params = {**state.params, MERGING: self._new_merging(jax.random.fold_in(key, 1))}
        return state.replace(params=params, optimizer={**state.optimizer, "student": self.optimizer.init(params)})

    def predict(self, state: TrainState, bag: Bag) -> Prediction:
        """The prediction for one bag; with `merge_test` of its instances and the tokens that all of them merge into."""
        bag = self._normalized(bag, state.constants)
        if not self.masking.merge_test:
            return self._apply(self._plain(state.params), state.hyper, bag, None)
        return self._merged(state.params, state.hyper, bag, bag.num_instances, bag.mask, None)

    def schedule(self, hyper: dict[str, float], sizes: np.ndarray, steps: Steps) -> dict[str, np.ndarray]:
        """As `MHIM`, and "merge_stay" [count, B], how many instances stay; "query_rate" = 1 - merge_momentum [count]."""
        rows = super().schedule(hyper, sizes, steps)
        masking = self.masking.with_hyper(hyper)
        hidden = rows.get("mask_high", rows.get("mask_pool", np.zeros_like(sizes)))
        left = np.maximum(self._read(hyper, sizes) - hidden, 1)
        rows["merge_stay"] = (left * masking.merge_ratio).astype(np.int64)
        rows["query_rate"] = np.full(steps.count, 1.0 - masking.merge_momentum)
        return rows

    @property
    def _merging(self) -> QueryMerging:
        return QueryMerging(self.masking.merge_queries)

    def _new_merging(self, key: Array) -> PyTree:
        width = self.module.feature_dim
        return self._merging.init({"params": key}, jnp.zeros((1, width)), jnp.ones(1, bool))["params"]

    def _plain(self, params: PyTree) -> PyTree:
        return {name: value for name, value in params.items() if name != MERGING}

    def _kept(self, scores: Array, mask: Array, counts: MaskCounts, key: Array) -> tuple[Array, Array]:
        """In a random order: the first of them stay, the others are merged."""
        rows, number = super()._kept(scores, mask, counts, key)
        draws = jax.random.uniform(jax.random.fold_in(key, 1), rows.shape)
        return rows[jnp.argsort(jnp.where(jnp.arange(len(rows)) < number, draws, jnp.inf), stable=True)], number

    def _answers(
        self, params: PyTree, hyper: dict[str, Array], batch: Batch, inputs: Inputs, extras: dict[str, Array]
    ) -> Prediction:
        def answer(bag: Bag, key: Array, stay: Array) -> Prediction:
            others = bag.mask & (jnp.arange(len(bag.mask)) >= stay)
            return self._merged(params, hyper, bag, stay, others, key)

        stay = extras["merge_stay"][batch.places]
        return batch.gathered(map_bags(answer, inputs.bags, inputs.keys, stay, at_a_time=self.microbatch_size))

    def _averaged(
        self, before: PyTree, params: PyTree, predictions: Prediction, batch: Batch, extras: dict[str, Array]
    ) -> PyTree:
        """Queries follow the mean of what they gathered in the bags of the step."""
        present = (batch.weights > 0)[:, None, None]
        merged = jnp.where(present, jax.lax.stop_gradient(predictions.aux["merged"]), 0)
        mean = jnp.sum(merged, axis=0) / jnp.maximum(jnp.sum(batch.weights > 0), 1)
        queries = ema_update(before[MERGING][QUERIES], mean, extras["query_rate"])
        return {**params, MERGING: {**params[MERGING], QUERIES: queries}}

    def _merged(
        self, params: PyTree, hyper: dict[str, Array], bag: Bag, stay: Array, others: Array, key: Array | None
    ) -> Prediction:
        """The prediction for the first `stay` instances and the tokens that the `others` [N] merge into; aux: "merged" [k, E]."""
        train, rngs = key is not None, None
        if key is not None:
            of_features, of_merging, key = jax.random.split(key, 3)
            rngs = {"dropout": of_merging}
        h = self._features(params["feature"], hyper, bag, of_features if train else None)  # [N, E]
        tokens: Any = self._merging.apply({"params": params[MERGING]}, h, others, train, rngs=rngs)  # [k, E]
        size = len(h) + len(tokens)
        place = jnp.arange(size)
        rows = jnp.where((place < stay)[:, None], jnp.pad(h, ((0, len(tokens)), (0, 0))), 0)
        rows = jax.lax.dynamic_update_slice_in_dim(rows, tokens.astype(h.dtype), stay, axis=0)
        encoder = self.module.clone(feature_layer="none", dropout=0.0)
        rest = {name: value for name, value in self._plain(params).items() if name != "feature"}
        merged = Bag(rows, place < stay + len(tokens), covariates=bag.covariates)
        prediction = self._apply(rest, hyper, merged, key, encoder)
        return prediction.replace(aux={**prediction.aux, "merged": tokens})

    def _features(self, layer: PyTree, hyper: dict[str, Array], bag: Bag, key: Array | None) -> Array:
        """The aggregator's feature layer, with its dropout in training: [N, E]."""
        x = masked.zero_padding(bag.features, bag.mask)
        if self.precision == "bfloat16":
            layer, x = jax.tree.map(lambda value: value.astype(jnp.bfloat16), (layer, x))
        h = ACTIVATIONS[self.module.feature_activation](Affine(layer["kernel"], layer["bias"])(x))
        rate = hyper.get("aggregator.dropout", self.module.dropout)
        if key is not None and ("aggregator.dropout" in hyper or self.module.dropout > 0):
            h = dropout(h, rate, key)
        return h
