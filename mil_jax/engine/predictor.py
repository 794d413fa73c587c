"""Predictions: every replica of a plan scores its own bags of a cohort. Training (`engine/engine.py`) does the same after each epoch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from mil_jax.data.loading.residency import make_loader
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.bag_order import FOLD, MOST_SLOTS, EpochOrder, order_by_bucket
from mil_jax.engine.compilation import Programs
from mil_jax.engine.device_memory import device_limit, even
from mil_jax.engine.mesh import Placement, laid_out, sharing
from mil_jax.engine.plan import Plan
from mil_jax.engine.programs import DeviceCohort, EvaluationInputs, ReplicaIds
from mil_jax.engine.types import EngineSettings, PredictionData
from mil_jax.strategies.base import Analysis, Strategy, TrainState
from mil_jax.types import AnyArray, Array


class Predictor:
    """The replicas of a plan on the device mesh, and the bags that come to them. Leave by `exits`, which ends the work in the background.

    num_outputs: C. parts: by name bool [rows, num_bags], what may be scored. first: gives the order by which windows of streamed bags
    are sized; None: that of scoring the parts.
    """

    targets: AnyArray = None  # predictions need none

    def __init__(
        self,
        data: PredictionData,
        num_outputs: int,
        plan: Plan,
        settings: EngineSettings,
        parts: Mapping[str, np.ndarray],
        first: Callable[[], EpochOrder] | None = None,
    ) -> None:
        self.data, self.num_outputs, self.plan, self.settings, self.parts = data, num_outputs, plan, settings, parts
        self.all_programs = list[Programs]()
        self.side_by_side = copy.deepcopy(settings.side_by_side)
        self.vectorised = settings.vectorised
        self.num_replicas = len(plan.replicas)
        self.rows = [data.row(replica) for replica in plan.replicas]
        self.longest_part = int(max(1, *(part.sum(axis=1).max() for part in parts.values())))
        instance_parallel = sharing(settings.instance_parallel, jax.device_count(), *data.lengths)
        data_parallel = sharing(settings.data_parallel, jax.device_count() // instance_parallel, settings.batch_size)
        groups = np.array(self.rows) if self.vectorised else None  # runs of a fold have bags in common
        self.placement = placement = Placement(self.num_replicas, data_parallel, instance_parallel, groups)
        self.shard, self.fetch, self.strip_padding = placement.shard, placement.fetch, placement.strip_padding
        self.loader = make_loader(data.bags, data.lengths, placement, first or self._scoring_order)
        self.steps = {"evaluate": self._within_windows(self._bags_at_once())}
        self.exits = contextlib.ExitStack()
        self.exits.callback(self.loader.close)
        self.covariates = None if data.covariates is None else placement.replicate(data.covariates)

    def _scoring_order(self) -> EpochOrder:
        part = np.any(list(self.parts.values()), axis=0)
        bags, _ = self.data.listed(part, self.rows, int(max(1, part.sum(axis=1).max())))
        return order_by_bucket(bags, self.data.bucket, len(self.data.lengths), self.settings.steps_per_dispatch)

    def _within_windows(self, steps: Sequence[int]) -> list[int]:
        """How many steps a program makes, by bucket, where replicas go side by side: `steps`, or what a window of the loader has."""
        return [min(pair) for pair in zip(steps, self.loader.steps or steps)]

    def _bags_at_once(self) -> list[int]:
        """The bags of the first part in the fewest portions, as equal as can be, by bucket."""
        first = next(iter(self.parts.values()))
        buckets = range(len(self.data.lengths))
        most = [int((first & (self.data.bucket == bucket)).sum(axis=1).max()) for bucket in buckets]
        return [even(max(count, 1), MOST_SLOTS) for count in most]

    def cohort(self, bags: ResidentBags) -> DeviceCohort:
        """What the programs read, of these bags or their shapes."""
        return DeviceCohort(bags, self.targets, self.covariates)

    def cohort_shapes(self) -> list[DeviceCohort]:
        """What the programs of each bucket read."""
        return [self.cohort(self.loader.shapes(bucket)) for bucket in range(len(self.data.lengths))]

    def prepare(self, strategy: Strategy | Analysis) -> None:
        """From here on `programs` are those of this strategy."""
        if self.all_programs and self.all_programs[-1].strategy is strategy:
            return
        limit, chosen = device_limit(self.settings.memory_gib), self.side_by_side.setdefault(strategy.name, {})
        mesh, lengths = self.placement.mesh, self.data.lengths
        same = self.same_bags(np.arange(self.num_replicas))
        self.use(Programs(strategy, mesh, lengths, self.vectorised, limit, self.steps, same, chosen))

    def same_bags(self, members: np.ndarray) -> dict[str, int]:
        """By the name of a program, how many neighbouring replicas have the same bags where the devices hold these replicas."""
        same, _ = laid_out(self.placement.groups[members], self.placement.places)
        return {"evaluate": same, "train": same if self.settings.order == FOLD else 1}

    @property
    def ends_shape(self) -> jax.ShapeDtypeStruct:
        """Of what tells a program the steps of each replica that it is to make."""
        target = self.ids.target
        return jax.ShapeDtypeStruct((*target.shape, 2), target.dtype, sharding=target.sharding)

    def use(self, programs: Programs) -> None:
        """From here on these, for the replicas that the devices hold; they are closed at the end."""
        target = np.array([replica.target for replica in self.plan.replicas], np.int32)
        keys = jax.random.wrap_key_data(self.shard(np.asarray(jax.random.key_data(self.plan.keys()))))
        self.programs, self.ids = programs, ReplicaIds(key=keys, target=self.shard(target))
        if programs not in self.all_programs:
            self.all_programs.append(programs)
            self.exits.callback(programs.close)

    def score(self, state: TrainState, part: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(bags [n], their logits [n, C]) of each replica's part, on the host. state: of all replicas, on the host."""
        return self.per_replica(part, self.fetch(self.evaluate(self.shard(state), part)))

    def per_replica(self, part: np.ndarray, logits: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `score`, from what `evaluate` gave for the part, fetched."""
        logits = self.strip_padding(logits)
        bags, counts = self.listed(part)
        return [(bags[r, :count], logits[r, :count]) for r, count in enumerate(counts)]

    def evaluate(self, state: TrainState, part: np.ndarray, active: np.ndarray | None = None) -> Array:
        """Logits [R, V, C] of each replica's bags of the part, in the order of `listed`; of those that are `active` [R], or all."""
        return self.predict(state, self.listed(part, active)[0], (self.num_outputs,))

    def listed(self, part: np.ndarray, active: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(bags [R, V], -1 for none, and how many [R]); V: of the longest part."""
        return self.data.listed(part, self.rows, self.longest_part, active)

    def predict(
        self, state: TrainState, bags: np.ndarray, shape: tuple[int, ...], tell: Callable[[int], None] | None = None
    ) -> Array:
        """Logits [R, V, *shape] of the bags [R, V], -1 for none, which are in order of their bucket. tell: how many more were sent."""
        order = order_by_bucket(bags, self.data.bucket, len(self.data.lengths), bags.shape[1])
        logits = self.shard(np.zeros((*bags.shape, *shape), np.float32))
        sharded_bags = self.shard(bags)
        for window in self.loader.windows(order.bags, order.dispatches):
            cohort = self.cohort(window.bags)
            for ends in self.programs.portions("evaluate", window.bucket, window.lo, window.hi):
                inputs = EvaluationInputs(state, sharded_bags, self.shard(ends))
                logits, window.done = self.programs.evaluate(
                    window.bucket, cohort, logits, inputs, self.placement.count
                )
            if tell:
                tell(int((window.hi - window.lo).sum()))
        return logits
