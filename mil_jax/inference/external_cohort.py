"""The cohorts that `evaluate` names: from `--features F --labels L` to bags, the models that may score them, and their predictions.

A cohort is read with the run's own settings, but for its files, its filter and its tables; its settings stand behind its features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.config import base_config, require_setting, set_from_text
from mil_jax.data.cohort.cohort import Cohort, build_cohort
from mil_jax.data.cohort.covariates import values as covariate_values
from mil_jax.data.cohort.covariates import without
from mil_jax.data.cohort.instance_labels import read_instance_labels
from mil_jax.data.cohort.unlabelled import unlabelled_cohort
from mil_jax.data.loading.feature_moments import bag_moments, cohort_moments, distance
from mil_jax.data.shards.convert import Progress
from mil_jax.data.shards.reader import Shards
from mil_jax.data.tables import listed, read_header
from mil_jax.errors import ConfigError
from mil_jax.experiment.data_sources import cache_folder, open_shards
from mil_jax.experiment.targets import cohort_settings, label_groups, target_labels
from mil_jax.inference.instance_scores import instance_scores, require_scores
from mil_jax.inference.patient_overlap import Eligibility, eligible_models, require_scored
from mil_jax.inference.scored import ENSEMBLE, HELD_OUT, Scored
from mil_jax.inference.trained_run import ModelPredictions, TrainedRun, predict
from mil_jax.run_folder import features_json
from mil_jax.settings import SETTINGS
from mil_jax.tasks.base import Task
from mil_jax.tasks.metrics.instances import LabelledSlide, instance_result
from mil_jax.tasks.predictions_table import predictions_table

_FREE = (
    *("labels", "features", "shards", "slides_table", "id_column", "patient", "site", "filter", "encoder_name"),
    *("target", "event", "censored", "duplicates", "min_matched", "nonfinite", "cache", "residency", "prefetch_gib"),
)
_OWN_FILES = ("features", "shards", "labels", "slides_table", "filter", "encoder_name", "site")  # not the run's


@dataclass(frozen=True)
class Options:
    """What the command line says of one cohort. settings: {"data.id_column": "slide"}."""

    source: str
    folder: str
    labels: str = ""
    name: str = ""
    instance_labels: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class External:
    """A cohort to be scored. task_of: of each label column of the run. values: its targets of all bags, None without labels.
    notes: sentences on the data. excluded: slide, reason. covariates: [M, V], of a run that reads any.
    """

    name: str
    config: ConfigDict
    shards: Shards
    cohort: Cohort
    task_of: tuple[Task, ...]
    values: tuple[np.ndarray, ...] | None
    scoring: tuple[Eligibility, ...]
    notes: tuple[str, ...]
    excluded: pd.DataFrame
    covariates: np.ndarray | None = None


def cohort_config(run: TrainedRun, options: Options) -> ConfigDict:
    """The run's settings with where the cohort lies. Raises ConfigError for a setting that is not of the cohort."""
    config = in_one_process(run.config)
    config.data.target = ",".join(run.targets) or "label"
    for name in _OWN_FILES:
        config.data[name] = ""
    config.data[options.source], config.data.labels = options.folder, options.labels
    config.data.classes = config.data.positive = ""  # they are the run's
    for name, value in options.settings.items():
        require_setting(config, name)
        if name.removeprefix("data.") not in _FREE or not name.startswith("data."):
            free = ", ".join(f"data.{one}" for one in _FREE[2:])
            raise ConfigError(
                f"--config.{name} is the run's and stays as it was trained; of a cohort may be set {free}"
            )
        set_from_text(config, name, value)
    return config


def in_one_process(config: ConfigDict) -> ConfigDict:
    """The same settings without those of several processes; settings that are younger than the run have their defaults."""
    alone = base_config()
    with alone.unlocked():
        alone.update(ConfigDict(config.to_dict()))
    for name in alone.distributed:
        alone.distributed[name] = SETTINGS[f"distributed.{name}"].default
    return alone


def prepare(
    run: TrainedRun,
    options: Options,
    *,
    columns: Sequence[str] = (),
    accepted: Collection[str] = (),
    exclude_seen: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> External:
    """Reads the cohort and finds who may score it. columns: further ones of the label table.

    Raises UserError where features differ from the run's, tables do not fit, or all models have met its patients.
    """
    config = cohort_config(run, options)
    if options.instance_labels:
        require_scores(run)
    shards = open_shards(config, cache_folder(config), progress).shards
    trained, moments = features_json.read(run.folder)
    every = np.arange(len(shards))
    notes = features_json.require_same(trained, features_json.FeatureKind.of(shards, every), options.name, accepted)
    labelled = bool(config.data.labels)
    if labelled:
        cohort, task_of, labels = _labelled(run, config, shards, columns, strict)
        values: tuple[np.ndarray, ...] | None = labels
    else:
        if columns:
            raise ConfigError(f"--by={','.join(columns)} names columns of a label table, and {options.name} has none")
        if run.covariates:
            names = listed((one.name for one in run.covariates), 12)
            raise ConfigError(
                f"the run reads {names} of the label table, and {options.name} has none: name a table with these columns by --labels"
            )
        unit, rule = config.data.unit, config.data.patient
        cohort, values = unlabelled_cohort(shards.slide_ids, shards.num_instances, patient=rule, unit=unit), None
        task_of = tuple(run.tasks.values())
    converted = pd.DataFrame(shards.excluded, columns=["slide", "reason"], dtype=object)
    excluded = pd.concat([converted, cohort.excluded], ignore_index=True).drop_duplicates(ignore_index=True)
    scoring = [eligible_models(run.splits(target), run.folds[target], cohort) for target in range(len(run.targets))]
    seen = ~np.any([one.scored for one in scoring], axis=0)
    if exclude_seen and seen.any():
        lost = cohort.bags[seen]
        if seen.all():
            require_scored(scoring[0], cohort, options.name)
        notes.append(
            f"{lost['patient_id'].nunique()} patients ({len(lost)} bags) were left out, since every model of the run that met them was "
            "trained or validated on them (--exclude-seen)"
        )
        reason = "trained or validated on by every model that met it"
        rows = [{"slide": bag, "reason": reason} for bag in lost["bag_id"]]
        excluded = pd.concat([excluded, pd.DataFrame(rows)], ignore_index=True)
    else:
        for one in scoring:
            require_scored(one, cohort, options.name)
    apart = distance(moments, cohort_moments(bag_moments(shards, cohort.slides)))
    covariates = covariate_values(cohort.bags, run.covariates, config.data.labels) if run.covariates else None
    notes = [*shards.notes, *cohort.report, *notes, *without(cohort.bags, run.covariates)]
    notes += [*_whose(scoring, cohort), apart.sentence]
    return External(
        options.name, config, shards, cohort, task_of, values, tuple(scoring), tuple(notes), excluded, covariates
    )


def score(run: TrainedRun, external: External, columns: Sequence[str] = ()) -> list[Scored]:
    """Predicts the cohort; for each label column its bags in one group for each way of scoring."""
    by_fold = [scoring.by_fold for scoring in external.scoring]
    models = predict(run, external.config, external.shards, external.cohort, by_fold, external.covariates)
    groups = []
    for target, scoring in enumerate(external.scoring):
        task = external.task_of[target]
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


def _labelled(
    run: TrainedRun, config: ConfigDict, shards: Shards, columns: Sequence[str], strict: bool
) -> tuple[Cohort, tuple[Task, ...], tuple[np.ndarray, ...]]:
    settings, _ = cohort_settings(config, strict)
    classes = {task.strata_names for task in run.tasks.values() if not task.joint and not settings.numbers}
    # A column called "site" is the label table's, unless it is the site that TCGA barcodes tell.
    wanted = tuple(name for name in columns if name != "site" or "site" in read_header(config.data.labels))
    wanted += tuple(one.name for one in run.covariates if one.name not in wanted)
    settings = dataclasses.replace(
        settings, classes=next(iter(classes)) if len(classes) == 1 else None, positive=None, columns=wanted
    )
    cohort = build_cohort(
        shards.slide_ids,
        shards.num_instances,
        settings,
        modified=shards.provenance["source_mtime"].to_numpy(np.float64),
    )
    groups = label_groups(config, settings).values()
    values = [
        task.targets(target_labels(config, cohort, names, settings))
        for task, names in zip(run.tasks.values(), groups, strict=True)
    ]
    return cohort, tuple(run.tasks.values()), tuple(values)


def _whose(scoring: Sequence[Eligibility], cohort: Cohort) -> list[str]:
    """Sentences on the patients whom the run knows."""
    known = ~np.all([one.unseen for one in scoring], axis=0)
    if not known.any():
        return ["no patient of this cohort was met by the run: all its models score it, averaged"]
    patients = cohort.bags["patient_id"][known].nunique()
    return [
        f"{patients} patients ({int(known.sum())} of {len(known)} bags) are the run's own: each is scored only by the models of a fold "
        "that held the patient out as test"
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
