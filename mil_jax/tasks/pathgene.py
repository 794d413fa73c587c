"""Classification as the PathGene benchmark does it (panliangrui/NIPS2025): a sigmoid for each class, its own metrics beside the usual.

`val_selection_score` chooses epochs as its scripts do, on the test fold where `train.protocol=reference` has no validation part.
Thresholds are chosen on the bags that are scored, so these metrics are too good, most of all for rare classes; the usual metrics stand
beside them. Under `cross_entropy` (its TransMIL of more than two classes; DTFD) the scores are those of the softmax, not sigmoids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.pathgene import pathgene_metrics


@dataclasses.dataclass(frozen=True)
class PathGene(Classification):
    """The task of telling `classes` apart. Targets are one-hot float32 [M, C], NaN = unknown."""

    name: ClassVar[str] = "pathgene"
    losses: ClassVar[tuple[str, ...]] = ("binary_cross_entropy", "cross_entropy")
    settings: ClassVar[tuple[str, ...]] = ("loss_name",)
    numeric: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    headline: ClassVar[tuple[str, ...]] = ("auc", "accuracy", "pathgene_auc", "pathgene_accuracy")

    @property
    def monitors(self) -> tuple[str, ...]:
        return (*super().monitors, "val_selection_score")

    def monitor(self, name: str, logits: np.ndarray, targets: np.ndarray) -> float:
        """`val_loss`, `val_auc`, and `val_selection_score`: half of the sum of the classes' AUCs and the accuracy."""
        if name != "val_selection_score":
            return super().monitor(name, logits, targets)
        return self._own(self.probabilities(logits), targets).get("selection_score", np.nan)

    def metrics(
        self, probabilities: np.ndarray, targets: np.ndarray, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """The usual ones, `pathgene_auc` (mean of the sigmoids' AUCs), `pathgene_accuracy` (all classes right), `pathgene_f1` (macro)."""
        own = self._own(probabilities, targets)
        named = {f"pathgene_{name}": own.get(name, np.nan) for name in ("auc", "accuracy", "f1")}
        return super().metrics(probabilities, targets, groups) | named

    def _own(self, probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Empty without a usable prediction."""
        index = self.class_index(targets)
        known = index >= 0
        if not known.any() or not np.isfinite(probabilities).all():
            return {}
        values = pathgene_metrics(probabilities[known], index[known])
        return {
            "selection_score": values["selection_score"],
            "auc": values["mean_auc"],
            "accuracy": values["exact_match_accuracy"],
            "f1": float(values["report_macro"][2]),
        }
