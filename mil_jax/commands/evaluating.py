"""Scores cohorts with the models of a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags
from ml_collections import ConfigDict

from mil_jax.cli.console import console, say
from mil_jax.cli.progress import conversion_progress
from mil_jax.cli.session import set_up
from mil_jax.data.tables import listed
from mil_jax.experiment.final_model import is_final
from mil_jax.files import atomic_folder
from mil_jax.inference.cohort_settings import in_one_process
from mil_jax.inference.external_cohort import read_cohort
from mil_jax.inference.options import Options
from mil_jax.inference.score_cohort import score, score_instances
from mil_jax.inference.scored import HELD_OUT, Scored
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.reports.evaluation.calibration import CALIBRATED
from mil_jax.reports.evaluation.instances import instance_statements
from mil_jax.reports.evaluation.metrics import averaged, result
from mil_jax.reports.evaluation.write import MARKER, console_report, write_evaluation
from mil_jax.reports.run.statements import AUC_INTERVAL
from mil_jax.reports.statistics import RESAMPLES
from mil_jax.run_folder.folder import RunFolder, understood


def run(options: Sequence[Options], values: flags.FlagValues) -> int:
    """Writes the evaluation of the cohorts; returns the command's exit code. values: of the command's flags."""
    folder = RunFolder.require_complete(values.run)
    with understood(folder.path / "config.json"):
        config = in_one_process(ConfigDict(folder.config))
    set_up(config)
    run = TrainedRun.open(values.run)
    target = Path(values.out or run.folder.path / "evaluation")
    with atomic_folder(target, MARKER, values.overwrite, "an evaluation") as results:
        content = _evaluate(run, options, values, results)
    console.print(console_report(content), soft_wrap=False)
    written = ", ".join(sorted(f"{path.name}/" if path.is_dir() else path.name for path in target.iterdir()))
    say(f"Everything is in {target}: {written}.")
    return 0


def _evaluate(run: TrainedRun, options: Sequence[Options], values: flags.FlagValues, folder: Path) -> dict[str, Any]:
    scored: list[Scored] = []
    cohorts, excluded, instances = [], [], []
    for one in options:
        with conversion_progress() as progress:
            external = read_cohort(
                run,
                one,
                columns=values.by,
                accepted=values.accept,
                exclude_seen=bool(values["exclude-seen"].value),
                strict=values.strict,
                progress=progress,
            )
        say(f"Cohort {external.name}:")
        for line in external.notes:
            say(f"  {line}")
        with console.status(f"scoring {len(external.cohort.bags)} bags of {external.name}"):
            scored += score(run, external, values.by)
        if one.instance_labels:
            with console.status(f"scoring single instances of {external.name}"):
                instances += score_instances(run, external, one.instance_labels)
        cohorts.append({"name": external.name, "features": one.folder, "labels": one.labels, "notes": external.notes})
        excluded.append(external.excluded.assign(cohort=external.name)[["cohort", "slide", "reason"]])
    with console.status("averages, intervals and figures"):
        averages = [averaged(group) for group in scored]
        on_test = bool(run.folder.read_json("summary.json").get("selected_on_test"))
        results = [
            (group, means, result(group, means, values.by) | {"selected_on_test": on_test and group.how == HELD_OUT})
            for group, means in zip(scored, averages)
        ]
        report = {
            "title": f"{run.config.name} scored on {', '.join(one.name for one in options)}",
            "run": str(run.folder.path),
            "statements": [*_statements(run, results), *instance_statements(instances)],
            "cohorts": cohorts,
            "instances": instances,
        }
        return write_evaluation(folder, results, pd.concat(excluded, ignore_index=True), report)


def _statements(run: TrainedRun, results: Any) -> list[str]:
    """How the numbers came about."""
    said = [
        "No model scored a patient whom it was trained or validated on (patients and slides joined with the run's splits.csv)."
    ]
    if any(group.how == HELD_OUT for group, _, _ in results):
        said.append(
            "'Models that held it out': each patient by the models of the folds that tested on it, seeds averaged; AUC and average "
            "precision rank patients of one fold only."
        )
    failed = list(dict.fromkeys(name for _, _, one in results for name in one["not_finite"]))
    if failed:
        said.append(
            f"{len(failed)} models have no finite predictions and are left out of the averages: {listed(failed, 5)}."
        )
    if not any(group.labelled for group, _, _ in results):
        return said
    said.append(
        f"95 % interval: {AUC_INTERVAL}percentiles over {RESAMPLES} resamples of the patients of the cohort (a patient's bags together); "
        "the models stay as trained."
    )
    labelled = [one for _, _, one in results if one["labelled"]]
    whose = f"{run.config.train.epochs_of}, which the final model was made from," if is_final(run.config) else "the run"
    if any(one["calibrated"] or "accuracy_at_threshold" in one["metrics"] for one in labelled):
        said.append(
            f"Thresholds (largest tpr - fpr) and calibration (a temperature, and a shift of each class) come from the validation "
            f"predictions of {whose} alone, each by the models of one fold; they apply to the mean of the models' scores, and an average "
            "over folds is sharpened for the noise that it has lost."
        )
    elif any(isinstance(group.task, CALIBRATED) for group, _, _ in results):
        said.append(
            "There are no thresholds and no calibration: the run has no validation predictions of its own, or fewer than 10 cases of a "
            "class; decisions are by the largest probability."
        )
    if any(one["selected_on_test"] for _, _, one in results):
        said.append(
            "Selected on test: the run chose its epochs on the test parts that are held out here, so these numbers are too good."
        )
    return said
