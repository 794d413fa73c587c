"""Early stopping: which epoch of a run is chosen, and when a run stops; decided on the host, once an epoch, for all replicas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mil_jax.errors import ConfigError
from mil_jax.tasks.base import higher_is_better


@dataclass(frozen=True)
class Selection:
    """monitor: "last", or a score of the task such as "val_loss". patience: epochs without improvement before a run stops, 0 = never.

    min_epochs: no run stops before this many epochs. first_epoch: the first that may be chosen, from 0; until then nobody waits.
    """

    monitor: str = "val_loss"
    patience: int = 0
    min_epochs: int = 0
    first_epoch: int = 0

    def __post_init__(self) -> None:
        if self.monitor == "last" and self.patience:
            raise ConfigError(
                "train.patience needs a validation score: set train.monitor to val_loss, or patience to 0"
            )

    def better(self, score: float, best: float) -> bool:
        """Whether `score` improves on `best`; NaN never does."""
        if math.isnan(score):
            return False
        return score > best if higher_is_better(self.monitor) else score < best


@dataclass
class Progress:
    """Where each replica stands, [R]; plain lists on disk, so that a resumed run decides as an undisturbed one.

    best, best_epoch: the best score and its epoch, -1 before the first. active: whether it still trains. epochs: how many it
    trained. failed: the epoch in which its loss stopped being finite, -1 where it did not; it is frozen from then on.
    """

    best: np.ndarray
    best_epoch: np.ndarray
    active: np.ndarray
    epochs: np.ndarray
    failed: np.ndarray

    @classmethod
    def start(cls, num_replicas: int, selection: Selection) -> Progress:
        """Before the first epoch."""
        worst = -np.inf if higher_is_better(selection.monitor) else np.inf
        return cls(
            best=np.full(num_replicas, worst),
            best_epoch=np.full(num_replicas, -1, np.int64),
            active=np.ones(num_replicas, bool),
            epochs=np.zeros(num_replicas, np.int64),
            failed=np.full(num_replicas, -1, np.int64),
        )

    def update(self, epoch: int, losses: np.ndarray, scores: np.ndarray, selection: Selection) -> np.ndarray:
        """Takes in the training losses (or their sums) and the scores [R] of an epoch; returns `improved` [R].

        Replicas that had stopped before stay as they are; one whose loss is not finite stops and never improves.
        """
        improved = np.zeros(len(scores), bool)
        for r in np.flatnonzero(self.active):
            self.epochs[r] = epoch + 1
            if not math.isfinite(losses[r]):
                self.failed[r], self.active[r] = epoch, False
                continue
            if epoch >= selection.first_epoch and selection.better(scores[r], self.best[r]):
                improved[r] = True
                self.best[r], self.best_epoch[r] = scores[r], epoch
            waited = epoch - max(self.best_epoch[r], selection.first_epoch - 1)
            if selection.patience and waited >= selection.patience and epoch + 1 >= selection.min_epochs:
                self.active[r] = False
        return improved

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers; floats keep every bit."""
        return {name: getattr(self, name).tolist() for name in ("best", "best_epoch", "active", "epochs", "failed")}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """The inverse of `to_json`."""
        return cls(
            best=np.array(data["best"], np.float64),
            best_epoch=np.array(data["best_epoch"], np.int64),
            active=np.array(data["active"], bool),
            epochs=np.array(data["epochs"], np.int64),
            failed=np.array(data["failed"], np.int64),
        )
