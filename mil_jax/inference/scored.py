"""Predictions of a cohort by the models of a run."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mil_jax.tasks.base import Task

HELD_OUT, ENSEMBLE = "held out", "ensemble"


@dataclass(frozen=True)
class Scored:
    """The bags of one cohort that were scored in one way, for one label column.

    cohort, label_column: names. how: HELD_OUT or ENSEMBLE. by_model: rows as in predictions.csv of the part "test", of every model.
    validation: the same of the part "val", of the run. labelled: whether there are labels.
    """

    cohort: str
    label_column: str
    how: str
    task: Task
    by_model: pd.DataFrame
    validation: pd.DataFrame
    labelled: bool

    @property
    def name(self) -> str:
        """ "hospital, subtype, ensemble"."""
        return ", ".join(filter(None, (self.cohort, self.label_column, self.how)))
