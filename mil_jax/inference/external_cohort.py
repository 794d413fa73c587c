"""A cohort that a run did not train on, or meets again: its bags, its labels if it has any, and the models that may score it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.data.cohort.cohort import Cohort, build_cohort
from mil_jax.data.cohort.covariates import values as covariate_values
from mil_jax.data.cohort.covariates import without
from mil_jax.data.cohort.unlabelled import unlabelled_cohort
from mil_jax.data.loading.feature_moments import bag_moments, cohort_moments, distance
from mil_jax.data.shards.convert import Progress
from mil_jax.data.shards.reader import Shards
from mil_jax.data.tables import listed, read_header
from mil_jax.errors import ConfigError
from mil_jax.experiment.data_sources import cache_folder, open_shards
from mil_jax.experiment.targets import cohort_settings, label_groups, target_labels
from mil_jax.inference.cohort_settings import cohort_config
from mil_jax.inference.instance_scores import require_scores
from mil_jax.inference.options import Options
from mil_jax.inference.patient_overlap import Eligibility, eligible_models, require_scored
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.run_folder import features_json


@dataclass(frozen=True)
class External:
    """A cohort to be scored. values: the targets of all bags, of each label column of the run, None without labels.
    notes: sentences on the data. excluded: slide, reason. covariates: [M, V], of a run that reads any.
    """

    name: str
    config: ConfigDict
    shards: Shards
    cohort: Cohort
    values: tuple[np.ndarray, ...] | None
    scoring: tuple[Eligibility, ...]
    notes: tuple[str, ...]
    excluded: pd.DataFrame
    covariates: np.ndarray | None = None


def read_cohort(
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
    kind = features_json.FeatureKind.of(shards, np.arange(len(shards)))
    notes = features_json.require_same(trained, kind, options.name, accepted)
    values: tuple[np.ndarray, ...] | None = None
    if config.data.labels:
        cohort, values = _labelled(run, config, shards, columns, strict)
    else:
        cohort = _unlabelled(run, config, shards, columns, options.name)
    converted = pd.DataFrame(shards.excluded, columns=["slide", "reason"], dtype=object)
    excluded = pd.concat([converted, cohort.excluded], ignore_index=True).drop_duplicates(ignore_index=True)
    scoring = [eligible_models(run.splits(target), run.folds[target], cohort) for target in range(len(run.targets))]
    seen = ~np.any([one.scored for one in scoring], axis=0)
    if exclude_seen and seen.any() and not seen.all():
        lost = cohort.bags[seen]
        notes.append(
            f"{lost['patient_id'].nunique()} patients ({len(lost)} bags) were left out, since every model of the run that met them was "
            "trained or validated on them (--exclude-seen)"
        )
        rows = pd.DataFrame({"slide": lost["bag_id"], "reason": "trained or validated on by every model that met it"})
        excluded = pd.concat([excluded, rows], ignore_index=True)
    else:
        for one in scoring:
            require_scored(one, cohort, options.name)
    apart = distance(moments, cohort_moments(bag_moments(shards, cohort.slides)))
    covariates = covariate_values(cohort.bags, run.covariates, config.data.labels) if run.covariates else None
    notes = [*shards.notes, *cohort.report, *notes, *without(cohort.bags, run.covariates)]
    notes += [*_whose(scoring, cohort), apart.sentence]
    return External(options.name, config, shards, cohort, values, tuple(scoring), tuple(notes), excluded, covariates)


def _unlabelled(run: TrainedRun, config: ConfigDict, shards: Shards, columns: Sequence[str], name: str) -> Cohort:
    if columns:
        raise ConfigError(f"--by={','.join(columns)} names columns of a label table, and {name} has none")
    if run.covariates:
        names = listed((one.name for one in run.covariates), 12)
        raise ConfigError(
            f"the run reads {names} of the label table, and {name} has none: name a table with these columns by --labels"
        )
    return unlabelled_cohort(shards.slide_ids, shards.num_instances, patient=config.data.patient, unit=config.data.unit)


def _labelled(
    run: TrainedRun, config: ConfigDict, shards: Shards, columns: Sequence[str], strict: bool
) -> tuple[Cohort, tuple[np.ndarray, ...]]:
    settings, _ = cohort_settings(config, strict)
    classes = {task.strata_names for task in run.tasks.values() if not task.joint and not settings.numbers}
    # A column called "site" is the label table's, unless it is the site that TCGA barcodes tell.
    wanted = tuple(name for name in columns if name != "site" or "site" in read_header(config.data.labels))
    if "site" in wanted:
        settings = dataclasses.replace(settings, site="site")
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
    return cohort, tuple(values)


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
