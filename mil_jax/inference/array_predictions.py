"""Predictions of all models of a run for bags that are at hand as arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.errors import DataError
from mil_jax.experiment.phases import make_strategy
from mil_jax.inference.trained_run import TrainedRun, ladder_of, plan_of
from mil_jax.run_folder import tasks_json
from mil_jax.strategies.base import TrainState


class ArrayPredictor:
    """The models of a run on the device; a program is compiled for each bucket length that bags ask for."""

    def __init__(self, run: TrainedRun) -> None:
        self.run = run
        plan = plan_of(run, run.config)
        self.strategy = make_strategy(run.config, run.tasks[run.targets[0]], plan)
        steps = np.zeros(len(plan.replicas), np.int32)
        states = TrainState(steps, run.params, {}, plan.stacked_hyper(), run.constants)
        self.states = jax.tree.map(jnp.asarray, states)
        # Sequentially: the models read the same bag, which vmap would lay out once for each of them.
        self._predict = jax.jit(
            lambda states, bag: jax.lax.map(lambda state: self.strategy.predict(state, bag), states)
        )

    def __call__(self, features: np.ndarray, coords: np.ndarray | None = None) -> Prediction:
        """Of all models, [R, ...], on the host; instances are those of the bag, without padding.

        features: [n, *F]. coords: [n, 2] level-0 pixels, for methods that need places.
        Raises DataError where the run's models read other features, places that are not given, or columns of a label table.
        """
        bag = self._bag(np.asarray(features), coords)
        prediction: Prediction = jax.device_get(self._predict(self.states, bag))
        n = len(features)

        def cut(x: Any, axis: int) -> Any:
            return None if x is None else np.take(x, np.arange(n), axis)

        return prediction.replace(
            attention=cut(prediction.attention, -1),
            scores=cut(prediction.scores, -1),
            instance_logits=cut(prediction.instance_logits, 1),
        )

    def probabilities(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """{label column: [outputs]} from the logits [R, C] of all models: the mean over those that are finite."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.run.targets}
        for replica, fitted, one in zip(self.run.replicas, self.run.fitted, logits, strict=True):
            name = self.run.targets[replica.target]
            found[name].append(tasks_json.of_run(self.run.tasks[name], fitted).probabilities(one[None])[0])
        return {name: np.mean([one for one in rows if np.isfinite(one).all()], axis=0) for name, rows in found.items()}

    def _bag(self, features: np.ndarray, coords: np.ndarray | None) -> Bag:
        data = self.run.config.data
        others = {"slide_index": np.zeros(len(features), np.int32)}
        if self.run.covariates:
            raise DataError(
                "the run reads columns of the label table: score a folder with a table, by `mil_jax.evaluate`"
            )
        if not len(features):
            raise DataError("the bag has no instances")
        if data.neighbors:
            others["neighbors"] = nearest_neighbors(coords, data.neighbors, "given")
        if data.regions:
            others["part_mask"] = np.ones(features.shape[:2], bool)
        places = np.zeros((len(features), 2), np.int32) if coords is None else np.asarray(coords, np.int32)
        ladder = ladder_of(self.run, np.array([len(features)]))
        length = ladder.lengths[int(ladder.bucket(np.array([len(features)]))[0])]
        return Bag.from_array(features.astype(np.float32), places, pad_to=length, **others)
