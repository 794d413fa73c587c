"""A cohort scored by the models of a run that may score it: its bags, and single instances that are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.data.cohort.instance_labels import read_instance_labels
from mil_jax.data.shards.reader import Shards
from mil_jax.inference.external_cohort import External
from mil_jax.inference.instance_scores import instance_scores
from mil_jax.inference.scored import ENSEMBLE, HELD_OUT, Scored
from mil_jax.inference.trained_run import ModelPredictions, TrainedRun, predict
from mil_jax.tasks.metrics.instances import LabelledSlide, instance_result
from mil_jax.tasks.predictions_table import predictions_table


def score(run: TrainedRun, external: External, columns: Sequence[str] = ()) -> list[Scored]:
    """Predicts the cohort; for each label column its bags in one group for each way of scoring."""
    by_fold = [scoring.by_fold for scoring in external.scoring]
    models = predict(run, external.config, external.shards, external.cohort, by_fold, external.covariates)
    groups = []
    for target, scoring in enumerate(external.scoring):
        task = run.tasks[run.targets[target]]
        mine = [model for model in models if model.target == target]
        for how, chosen in ((HELD_OUT, ~scoring.unseen), (ENSEMBLE, scoring.unseen)):
            tables = [_table(run, external, model, chosen, columns) for model in mine]
            tables = [table for table in tables if len(table)]
            if not tables:
                continue
            groups.append(
                Scored(
                    external.name,
                    run.columns.title(target),
                    how,
                    task,
                    pd.concat(tables, ignore_index=True),
                    run.validation(target),
                    external.values is not None,
                )
            )
    return groups


def score_instances(run: TrainedRun, external: External, folder: str) -> list[dict[str, Any]]:
    """How well instances are found whose labels lie in `folder`: a row for each way of scoring, as in evaluation.json.

    Bags without a file of labels count where they are of the negative class, which has no positive instance; others are left out.
    Raises UserError where labels do not fit, or the aggregator scores no instances.
    """
    shards, cohort, scoring = external.shards, external.cohort, external.scoring[0]
    labels = read_instance_labels(folder, shards.slide_ids, shards.num_instances)
    negative = np.zeros(len(cohort.slides), bool) if external.values is None else external.values[0] == 0
    labelled = np.array([all(int(slide) in labels for slide in slides) for slides in cohort.slides])
    wanted = np.flatnonzero((labelled | negative) & scoring.scored)
    scores = instance_scores(
        run, external.config, shards, cohort, scoring.by_fold, wanted.tolist(), external.covariates
    )
    rows = []
    for how, chosen in ((HELD_OUT, ~scoring.unseen), (ENSEMBLE, scoring.unseen)):
        slides: list[LabelledSlide] = []
        for bag in wanted[chosen[wanted]].tolist():
            of_models = list(scores[bag].values())
            for values in of_models if how == HELD_OUT else [np.mean(of_models, axis=0)]:
                slides += _slides_of(shards, cohort.slides[bag], values, labels)
        if slides:
            left_out = int((chosen & scoring.scored).sum() - chosen[wanted].sum())
            rows.append({"cohort": external.name, "scored": how, "bags_left_out": left_out, **instance_result(slides)})
    return rows


def _slides_of(
    shards: Shards, numbers: np.ndarray, scores: np.ndarray, labels: Mapping[int, np.ndarray]
) -> list[LabelledSlide]:
    """The slides of one bag, whose scores lie end to end."""
    sizes = shards.num_instances[numbers]
    parts = np.split(scores, np.cumsum(sizes)[:-1])
    return [
        LabelledSlide(part, labels.get(number, np.zeros(len(part), bool)), shards.read_coords(number))
        for number, part in zip(numbers.tolist(), parts, strict=True)
    ]


def _table(
    run: TrainedRun, external: External, model: ModelPredictions, chosen: np.ndarray, columns: Sequence[str]
) -> pd.DataFrame:
    """The rows of predictions.csv of one model, of the bags that are `chosen` [M]."""
    task, bags = model.task, external.cohort.bags
    mine = chosen[model.bags]
    rows, logits = model.bags[mine], model.logits[mine]
    order = np.argsort(rows)
    rows = rows[order]
    table = predictions_table(
        task,
        bag_ids=bags["bag_id"].to_numpy()[rows],
        patient_ids=bags["patient_id"].to_numpy()[rows],
        num_instances=bags["num_instances"].to_numpy()[rows],
        fold=model.fold,
        seed=model.seed,
        part="test",
        targets=external.values[model.target][rows] if external.values is not None else None,
        probabilities=task.probabilities(logits[order]),
    )
    table.insert(table.columns.get_loc("fold") + 1, "fold_name", run.folds[model.target][model.fold])
    return table.assign(**{name: bags[name].to_numpy()[rows] for name in columns})
