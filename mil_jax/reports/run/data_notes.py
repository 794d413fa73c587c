"""What a summary says of the data."""

from __future__ import annotations

import pandas as pd

from mil_jax.data.splits.describe import describe
from mil_jax.experiment.experiment import Experiment
from mil_jax.reports.run.multi_target import common_sentences


def notes_on_data(experiment: Experiment) -> list[str]:
    """Sentences on what was converted, matched, excluded and split."""
    shards, cohort = experiment.shards, experiment.cohort
    converted = pd.DataFrame(shards.excluded, columns=["slide", "reason"])
    lost = [f"excluded at conversion {len(rows)}: {reason}" for reason, rows in converted.groupby("reason")]
    sentences = {
        target.name: describe(cohort, target.strata, target.task.strata_names, target.splits).sentences
        for target in experiment.targets
    }
    if len(experiment.targets) == 1:
        return [*shards.notes, *lost, *sentences[experiment.targets[0].name]]
    rarest = [min(target.class_counts.values()) for target in experiment.targets]
    own = {name: lines[len(cohort.report) + 1 :] for name, lines in sentences.items()}  # without the list of classes
    return [
        *shards.notes,
        *lost,
        *cohort.report,
        f"{len(rarest)} label columns, each with models and splits of its own; {len(experiment.task.strata_names)} classes, the rarest "
        f"with {min(rarest)} to {max(rarest)} bags",
        *common_sentences(own),
        *(f"label column left out: {name}: {reason}" for name, reason in experiment.left_out.itertuples(index=False)),
    ]
