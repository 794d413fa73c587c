"""MHIM-MIL, masked hard instance mining (Tang et al., ICCV 2023; code of branch v1), over any aggregator with attention.

A teacher, the moving average of the student, scores the instances of a bag; the student is trained on those that are left when some are
masked by these scores, among them the easy ones. Loss = task loss + weight * consistency of the two bag embeddings. Predictions are the
student's, without a mask. Masked instances are taken out of the bag before the student embeds it: nothing is computed for them, and an
aggregator sees an ordinary, shorter bag. Kept instances stay in their order (the reference: that of a Python set). One always stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import instance_masks
from mil_jax.layers.instance_masks import MaskCounts
from mil_jax.layers.losses import feature_consistency, mean_over_bags
from mil_jax.layers.moving_average import ema_update
from mil_jax.strategies.base import Batch, Steps, TrainState, map_bags
from mil_jax.strategies.mhim_settings import MHIMSettings
from mil_jax.strategies.supervised import Inputs, Supervised
from mil_jax.types import Array, PyTree

_COUNTS = tuple(f"mask_{part}" for part in MaskCounts._fields)


class TeacherOutput(NamedTuple):
    """What the teacher makes of a bag: the bag that the student sees, and the teacher's embedding [E] or [C, E]."""

    bag: Bag
    embedding: Array


@dataclasses.dataclass(frozen=True)
class MHIM(Supervised):
    """See the module's docstring; settings as for `Supervised`, and `masking`.

    least_masked: share of every bag that all runs surely mask; the student's bags are allocated so much shorter.
    Reads from `hyper` also "strategy.*", the numeric settings of `MHIMSettings`.
    """

    masking: MHIMSettings = dataclasses.field(default_factory=MHIMSettings)
    least_masked: float = 0.0
    name: str = "mhim"

    def __post_init__(self) -> None:
        super().__post_init__()
        aggregator = self._aggregator
        if aggregator.strategy != Supervised.name:
            raise ConfigError(
                f"strategy.name=mhim trains an aggregator by one loss, and {type(aggregator).__name__} is trained in a way of its own: "
                "choose another aggregator, or leave strategy.name empty"
            )

    def init(
        self, key: Array, bag: Bag, hyper: dict[str, Array], constants: PyTree, previous: TrainState | None
    ) -> TrainState:
        """A student, fresh but for what `masking.init_student` takes from `previous`, and its teacher, which begins as `previous`."""
        state = super().init(key, bag, hyper, constants, previous)
        given = None if previous is None else self._plain(previous.params)
        student = state.params if given is None else self._initialised(state.params, given)
        teacher = given if given is not None and self.masking.init_teacher else student
        return state.replace(params=student, optimizer=self._optimizer_state(state.optimizer, teacher))

    def _initialised(self, fresh: PyTree, trained: PyTree) -> PyTree:
        """The student's first parameters."""
        if self.masking.init_student == "all":
            return trained
        return with_feature_layer(fresh, trained) if self.masking.init_student == "fc" else fresh

    def _optimizer_state(self, optimizer: PyTree, teacher: PyTree) -> dict[str, PyTree]:
        return {"student": optimizer} if self.masking.teacher_is_student else {"student": optimizer, "teacher": teacher}

    def step(
        self, state: TrainState, batch: Batch, extras: dict[str, Array], key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update of the student, then of its teacher. Metrics: "loss", and its parts "loss_task" and "loss_consistency"."""
        inputs = self._inputs(state, batch, key)
        counts = {name: extras[name][batch.places] for name in _COUNTS if name in extras}
        teacher = self._plain(state.params) if self.masking.teacher_is_student else state.optimizer["teacher"]
        teacher_outputs = map_bags(
            lambda bag, key, counts: self._lesson(teacher, state.hyper, bag, key, counts),
            *(inputs.bags, inputs.keys, counts),
            at_a_time=self.microbatch_size,
        )
        inputs = inputs._replace(bags=teacher_outputs.bag)
        teacher_embedding = batch.gathered(teacher_outputs.embedding)

        def loss_of(params: PyTree) -> tuple[Array, tuple[dict[str, Array], Prediction]]:
            predictions = self._answers(params, state.hyper, batch, inputs, extras)
            losses = {"loss_task": self._loss(predictions, batch, inputs)}
            total = self._setting("task_weight", state.hyper) * losses["loss_task"]
            if self.masking.uses("consistency_weight", state.hyper):
                temperature = self._setting("temperature", state.hyper)
                per_bag = jax.vmap(lambda s, t: feature_consistency(s, t, 1.0, temperature))(
                    predictions.embedding, teacher_embedding
                )
                losses["loss_consistency"] = mean_over_bags(per_bag, batch.weights > 0, batch.weights)
                total += self._setting("consistency_weight", state.hyper) * losses["loss_consistency"]
            return total, (losses, predictions)

        (loss, (losses, predictions)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer = self.optimizer.update(
            batch.averaged(gradients),
            state.optimizer["student"],
            state.params,
            lr=extras["lr"],
            weight_decay=state.hyper["optimizer.weight_decay"],
        )
        params = self._averaged(state.params, self._moved(state.params, updates), predictions, batch, extras)
        teacher = ema_update(teacher, self._plain(params), extras["teacher_rate"])
        state = state.replace(step=state.step + 1, params=params, optimizer=self._optimizer_state(optimizer, teacher))
        return state, {"loss": loss, **losses}

    def schedule(self, hyper: dict[str, float], sizes: np.ndarray, steps: Steps) -> dict[str, np.ndarray]:
        """{"lr", "teacher_rate" = 1 - momentum: [count]} and the counts of the mask, those in use: [count, B]."""
        rows = super().schedule(hyper, sizes, steps)
        masking = self.masking.with_hyper(hyper)
        sizes = self._read(hyper, sizes)
        rows["teacher_rate"] = 1.0 - masking.momenta(steps)
        for part in ("random", "low"):
            if self.masking.uses(f"mask_{part}", hyper):
                rows[f"mask_{part}"] = instance_masks.count(sizes, getattr(masking, f"mask_{part}"))
        if self.masking.uses("mask_high", hyper):
            ratio = masking.high_share(steps)[:, None]
            rows["mask_pool"], high = instance_masks.high_counts(sizes, ratio, masking.mask_high_share, masking.fusion)
            if self.masking.mask_high_share < 1 or "strategy.mask_high_share" in hyper:
                rows["mask_high"] = high
        return rows

    def _read(self, hyper: dict[str, float], sizes: np.ndarray) -> np.ndarray:
        """How many instances of each bag a step reads."""
        if not self.sample_instances:
            return sizes
        most = min(int(hyper.get("train.sample_instances", self.sample_instances)), self.sample_instances)
        return np.minimum(sizes, most)

    def parameter_shapes(self, bag: Bag) -> PyTree:
        """See `Supervised`; raises ConfigError, too, where the aggregator lacks scores, an embedding or a feature layer."""
        params = super().parameter_shapes(bag)
        self._initialised(params, params)
        prediction = jax.eval_shape(lambda params, bag: self._apply(params, {}, bag, None), params, bag)
        jax.eval_shape(self._scores, prediction)
        if prediction.embedding is None:
            raise ConfigError(
                "strategy.name=mhim compares bag embeddings, and this aggregator has none: choose one with attention"
            )
        return params

    def _plain(self, params: PyTree) -> PyTree:
        """Of a student's parameters those of the aggregator: what a teacher has."""
        return params

    def _answers(
        self, params: PyTree, hyper: dict[str, Array], batch: Batch, inputs: Inputs, extras: dict[str, Array]
    ) -> Prediction:
        """The student's predictions of the bags that the teacher masked, for all places of the batch."""
        del extras
        return self._predictions(params, hyper, batch, inputs)

    def _averaged(
        self, before: PyTree, params: PyTree, predictions: Prediction, batch: Batch, extras: dict[str, Array]
    ) -> PyTree:
        """The updated parameters, with those that are averages of predictions in place of what the optimiser made of them."""
        del before, predictions, batch, extras
        return params

    def _setting(self, name: str, hyper: Mapping[str, Any]) -> Any:
        return hyper.get(f"strategy.{name}", getattr(self.masking, name))

    def _lesson(
        self, teacher: PyTree, hyper: dict[str, Array], bag: Bag, key: Array, counts: dict[str, Array]
    ) -> TeacherOutput:
        of_teacher, of_mask = jax.random.split(jax.random.fold_in(key, 0))
        prediction = self._apply(teacher, hyper, bag, of_teacher if self.masking.teacher_dropout else None)
        prediction = jax.lax.stop_gradient(prediction)
        asked = MaskCounts(**{name.removeprefix("mask_"): value for name, value in counts.items()})
        rows, number = self._kept(self._scores(prediction), bag.mask, asked, of_mask)
        assert prediction.embedding is not None, "parameter_shapes has looked"
        return TeacherOutput(taken_out(bag, rows, number), prediction.embedding)

    def _kept(self, scores: Array, mask: Array, counts: MaskCounts, key: Array) -> tuple[Array, Array]:
        """The instances that the student sees, of scores [H, N]: numbers [K], and how many of them count."""
        draws = jax.random.uniform(key, (len(mask), 2))
        masked = instance_masks.masked_instances(scores, mask, counts, (draws[:, 0], draws[:, 1]), self.masking.fusion)
        kept = mask & ~masked
        capacity = max(1, int(np.ceil(len(mask) * (1 - self.least_masked) - 1e-6)))
        (rows,) = jnp.nonzero(kept, size=capacity, fill_value=0)
        return rows, jnp.sum(kept, dtype=jnp.int32)

    def _scores(self, prediction: Prediction) -> Array:
        """What instances are masked by: [H, N], float32; of several classes the largest attention. Before the softmax where that is the
        same order, since a softmax rounds small weights to equal ones.
        """
        if self.masking.scores == "class":
            if "class_scores" not in prediction.aux:
                raise ConfigError(
                    "strategy.scores=class needs an aggregator that scores instances by class: use abmil, dsmil or transmil, or "
                    "strategy.scores=attention"
                )
            return prediction.aux["class_scores"][None].astype(jnp.float32)
        if "class_attention" in prediction.aux:  # [2, heads, N]
            return prediction.aux["class_attention"][self.masking.attention_layer].astype(jnp.float32)
        if prediction.attention is None:
            raise ConfigError(
                "strategy.name=mhim masks instances by their attention, and this aggregator has none: choose another"
            )
        if prediction.attention.ndim == 2:
            return jnp.max(prediction.attention, axis=0, keepdims=True).astype(jnp.float32)
        scores = prediction.attention if prediction.scores is None else prediction.scores
        return scores[None].astype(jnp.float32)


def with_feature_layer(params: PyTree, others: PyTree) -> PyTree:
    """`params` with the feature layer of `others`. Raises ConfigError where the aggregator has none."""
    if "aggregator" in params and "reembed" in params:
        return {**params, "aggregator": with_feature_layer(params["aggregator"], others["aggregator"])}
    if "feature" not in params:
        raise ConfigError(
            "strategy.init_student=fc takes over the feature layer, and this aggregator has none: set it to none or all"
        )
    return {**params, "feature": others["feature"]}


def taken_out(bag: Bag, rows: Array, number: Array) -> Bag:
    """The bag of the instances `rows` [K], the first `number` of which count; neighbours that are not among them are gone."""
    real = jnp.arange(len(rows)) < number
    taken = bag.of_instances(rows, real)
    if bag.neighbors is None:
        return taken
    place = jnp.full(len(bag.mask), -1, jnp.int32)
    place = place.at[jnp.where(real, rows, len(place))].set(jnp.arange(len(rows), dtype=jnp.int32), mode="drop")
    old = bag.neighbors[rows]
    return taken.replace(neighbors=jnp.where(old < 0, -1, place[jnp.maximum(old, 0)]))
