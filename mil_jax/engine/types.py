"""What goes into the engine and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from mil_jax.data.loading.resident import ResidentBags
from mil_jax.data.loading.resident_loader import LazyBags
from mil_jax.data.loading.streamed import StreamedBags
from mil_jax.engine.early_stopping import Progress, Selection
from mil_jax.engine.plan import Replica
from mil_jax.strategies.base import Analysis, Strategy, TrainingBags
from mil_jax.types import PyTree


@dataclass(frozen=True, kw_only=True)
class PredictionData:
    """A cohort on the host; the features may stay in their shards.

    lengths: the bucket ladder, ascending; bucket: int [num_bags], the bucket each bag fits in.
    first_row: parts of the cohort are bool [rows, num_bags], a row for each fold of each target; this is the first row of each target.
    covariates: float32 [num_bags, V], NaN = not known, or None.
    """

    bags: ResidentBags | LazyBags | StreamedBags
    lengths: tuple[int, ...]
    bucket: np.ndarray
    first_row: tuple[int, ...] = (0,)
    covariates: np.ndarray | None = None

    def row(self, replica: Replica) -> int:
        """The row of a run's target and fold in every part."""
        return self.first_row[replica.target] + replica.fold

    def listed(
        self, part: np.ndarray, rows: Sequence[int], places: int, active: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(bags [R, places], -1 for none, and how many [R]): of each of the `rows` [R] those in a part [rows, num_bags], in order of their
        bucket. active [R]: the others have none.
        """
        bags = np.full((len(rows), places), -1, np.int32)
        counts = np.zeros(len(rows), np.int64)
        for r, row in enumerate(rows):
            if active is not None and not active[r]:
                continue
            numbers = np.flatnonzero(part[row])
            numbers = numbers[np.argsort(self.bucket[numbers], kind="stable")]
            bags[r, : len(numbers)], counts[r] = numbers, len(numbers)
        return bags, counts


@dataclass(frozen=True, kw_only=True)
class EngineData(PredictionData):
    """A cohort with its targets and its split.

    targets: [num_targets, num_bags, ...]. training, selection, test: the parts; `selection` is what chooses epochs.
    sampling: weights to draw training bags by, float [rows, num_bags], or None for each bag once an epoch.
    """

    targets: np.ndarray
    training: np.ndarray
    selection: np.ndarray
    test: np.ndarray
    sampling: np.ndarray | None = None

    def training_bags(self, replica: Replica, moments: Callable[[], tuple[np.ndarray, np.ndarray]]) -> TrainingBags:
        """What a run's strategy fits its constants to. moments: of its instances, when asked."""
        mine = self.training[self.row(replica)]
        return TrainingBags(
            self.targets[replica.target][mine], moments, None if self.covariates is None else self.covariates[mine]
        )


@dataclass(frozen=True)
class Phase:
    """One strategy and for how many epochs it runs. A boundary between phases is a barrier over all replicas."""

    strategy: Strategy
    epochs: int
    selection: Selection


@dataclass(frozen=True)
class AnalysisPhase:
    """A phase between two others that trains nothing: what it makes of the training bags is what the next is given as parameters."""

    strategy: Analysis


AnyPhase = Phase | AnalysisPhase


@dataclass(frozen=True)
class EngineSettings:
    """order: "independent" (each replica shuffles its bags) or "fold" (those of a fold share their shuffle).
    replica_axis: "auto" (map on a CPU, vmap elsewhere), "map" or "vmap". batch_size: bags a step and replica.
    data_parallel, instance_parallel: at most so many devices share a batch, or a bag. steps_per_dispatch: at most so many steps are sent at
    once. debug_nans: raises NotFinite with the step where a run stops being finite; keeps a copy of the state and fetches more. memory_gib:
    what may be used of a device; 0: what it has. side_by_side: by phase and bucket length, how many replicas of
    a device go side by side: what was chosen earlier. Others are decided on before training. blocks: of the order, see `BagOrder`.
    """

    order: str = "independent"
    batch_size: int = 1
    data_parallel: int = 1
    instance_parallel: int = 1
    data_seed: int = 0
    steps_per_dispatch: int = 64
    replica_axis: str = "auto"
    debug_nans: bool = False
    memory_gib: float = 0.0
    side_by_side: dict[str, dict[int, int]] = field(default_factory=dict)
    blocks: bool = True

    @property
    def vectorised(self) -> bool:
        """Whether the replicas of a device go side by side."""
        return self.replica_axis == "vmap" or (self.replica_axis == "auto" and jax.default_backend() != "cpu")


@dataclass
class FitResult:
    """What training ends with, on the host.

    logits: per replica {part: [bags of the part, C]}, with the bag numbers in `bags`. state: (parameters, constants) of all replicas on
    a leading axis, each from its chosen epoch. facts: what the engine did, for the summary. analyses: by the name of the phase what it
    found, see `engine/analysis_phase.py`.
    """

    logits: list[dict[str, np.ndarray]]
    bags: list[dict[str, np.ndarray]]
    state: PyTree
    progress: Progress
    facts: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, PyTree] = field(default_factory=dict)
