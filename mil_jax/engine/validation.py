"""What an epoch was worth: scores of the validation outputs, by the task of each run, and the rows of metrics.jsonl."""

from __future__ import annotations

from typing import Any

import numpy as np

from mil_jax.engine.plan import Plan
from mil_jax.engine.types import EngineData, Phase
from mil_jax.tasks.base import Task, fitted


class ValidationScorer:
    """tasks: of each replica, with what its training part tells."""

    def __init__(self, task: Task, plan: Plan, data: EngineData) -> None:
        self.plan, self.data = plan, data
        rows = {data.row(replica): replica.target for replica in plan.replicas}
        of_row = {row: fitted(task, data.targets[target][data.training[row]]) for row, target in rows.items()}
        self.tasks = [of_row[data.row(replica)] for replica in plan.replicas]

    def epoch(
        self,
        phase: Phase,
        logits: np.ndarray | None,
        part: tuple[np.ndarray, np.ndarray],
        sums: dict[str, np.ndarray],
        steps: np.ndarray,
        active: np.ndarray,
        epoch: int,
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Scores [R] (NaN without validation) and a row for each active replica.

        logits: [R, V, C] of the bags of `part` (numbers [R, V], how many [R]). sums: of the step metrics [R]; steps: how many [R].
        """
        scores = np.full(len(active), np.nan)
        rows = []
        bags, counts = part
        for r in np.flatnonzero(active):
            replica = self.plan.replicas[r]
            row: dict[str, Any] = {"phase": phase.strategy.name, "epoch": epoch, "replica": int(r)}
            row |= {"fold": replica.fold, "seed": replica.seed, "target": replica.target, "steps": int(steps[r])}
            for name, values in sums.items():
                row[f"train_{name}"] = float(values[r]) / max(int(steps[r]), 1)
            if logits is not None and counts[r]:
                targets = self.data.targets[replica.target][bags[r, : counts[r]]]
                for name in self.tasks[r].monitors:
                    row[name] = self.tasks[r].monitor(name, logits[r, : counts[r]], targets)
                scores[r] = row[phase.selection.monitor]
            rows.append(row)
        return scores, rows
