"""Compaction: where replicas go side by side (vmap), one that has stopped costs a device as much as one that runs.

When half of a device's replicas have stopped, the others may move to smaller programs. These must be compiled, so it is done once the
seconds given to stopped replicas reach those that compiling took: whatever comes, at most twice of what was needed is spent. States
of those that have stopped wait on the host and are part of every checkpoint. Since a clock decides, where results are the same to round-off
only, two trainings need not do it in the same epoch.
"""

from __future__ import annotations

import numpy as np

from mil_jax.engine.mesh import Placement
from mil_jax.types import PyTree


class InactiveReplicas:
    """Which replicas the devices of a placement hold, and the states of the others.

    idle_seconds: how long the devices have worked for replicas that had stopped since it was last decided who is held.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.idle_seconds = 0.0
        self._elsewhere: PyTree = None

    def rows(self, active: np.ndarray) -> int:
        """Replicas on each device if only those were held that are `active` [R]."""
        return -(-int(active.sum()) // self.placement.places)

    def half_have_stopped(self, active: np.ndarray) -> bool:
        """Whether half as many replicas on each device would do."""
        return 2 * self.rows(active) <= self.placement.per_device

    def epoch(self, seconds: float, active: np.ndarray) -> None:
        """An epoch has taken so long, in which `active` [R] were trained."""
        self.idle_seconds += seconds * (1 - self.rows(active) / self.placement.per_device)

    def of_all(self, tree: PyTree) -> PyTree:
        """Host arrays of all replicas: from the devices, and of the others as they were when they left."""
        return self.placement.strip_padding(self.placement.fetch(tree), self._elsewhere)

    def keep_on_device(self, members: np.ndarray, tree: PyTree) -> PyTree:
        """The devices' arrays of these replicas, in place of those they hold now; always the same tree."""
        self._elsewhere = self.of_all(tree)
        self.placement.keep_on_device(members)
        self.idle_seconds = 0.0
        return self.placement.shard(self._elsewhere)
