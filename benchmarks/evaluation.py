"""What evaluation takes: intervals over resampled patients for many runs at once, and label columns out of a wide table.

    python -m benchmarks.evaluation --machine laptop

25 runs, each with test predictions for the same 1,000 slides of 700 patients. "classes": AUC, accuracy and the nine other metrics of two
classes; "C-index": Harrell's, of censored times with ties; both over 1,000 resamples of patients. "survival": both C-indices, the
time-dependent AUC and the Brier score at ten times, over 200 resamples. Bar for the three together: 20 s. "columns": 200 of the 20,000
columns of a csv table of 1,000 rows. The median of the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import DEFAULT_MACHINE, RESULTS, paired, write_result
from mil_jax.data.tables import read_columns
from mil_jax.reports.statistics import bootstrap_intervals, patient_counts
from mil_jax.tasks.base import Task
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.survival import Cases, concordance
from mil_jax.tasks.predictions_table import TEST, predictions_table, probabilities_of, targets_of
from mil_jax.tasks.survival import Survival

RUNS, SLIDES, PATIENTS = 25, 1_000, 700
RESAMPLES, SURVIVAL_RESAMPLES = 1_000, 200
COLUMNS, READ = 20_000, 200
BAR_SECONDS = 20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the result's file")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is done")
    parser.add_argument("--small", action="store_true", help="a tenth of all sizes, to see that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)
    runs, slides, patients, resamples, survival_resamples, columns, read = (
        max(1, size // 10) if options.small else size
        for size in (RUNS, SLIDES, PATIENTS, RESAMPLES, SURVIVAL_RESAMPLES, COLUMNS, READ)
    )
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.arange(patients), rng.integers(0, patients, slides - patients)])
    classes, of_classes = _classes(rng, patient, runs)
    survival, of_survival = _survival(rng, patient, runs)
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "genes.csv"
        _write_table(table, rng, slides, columns)
        wanted = [f"gene_{number}" for number in rng.choice(columns, read, replace=False)]
        ways = {
            "classes": lambda: bootstrap_intervals(classes, of_classes, resamples=resamples),
            "C-index": lambda: _harrell(survival, of_survival, resamples),
            "survival": lambda: bootstrap_intervals(survival, of_survival, resamples=survival_resamples),
            "columns": lambda: read_columns(table, wanted),
        }
        seconds = paired(ways, options.rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    together = median["classes"] + median["C-index"] + median["survival"]
    rows = [
        (
            f"intervals of {runs} runs x {slides:,} slides: AUC, accuracy (and nine more) and C-index over {resamples:,} resamples, Brier "
            f"score and time-dependent AUC over {survival_resamples}",
            f"under {BAR_SECONDS} s",
            f"{together:.1f} s ({median['classes']:.1f} + {median['C-index']:.1f} + {median['survival']:.1f})",
        ),
        (f"{read} label columns of a csv of {columns:,}, {slides:,} rows", "seconds", f"{median['columns']:.1f} s"),
    ]
    given = list(sys.argv[1:] if arguments is None else arguments)
    write_result("evaluation", options.machine, {"seconds": seconds}, rows, arguments=given, folder=options.results)


def _classes(rng: np.random.Generator, patient: np.ndarray, runs: int) -> tuple[Task, pd.DataFrame]:
    """Two classes, of which a patient's slides need not have the same."""
    task = Classification(("0", "1"))
    label = rng.integers(0, 2, len(patient)).astype(np.int32)
    logits = rng.normal(size=(runs, len(patient), 2)) + np.eye(2)[label]
    return task, _predictions(task, patient, label, [task.probabilities(one) for one in logits])


def _survival(rng: np.random.Generator, patient: np.ndarray, runs: int) -> tuple[Task, pd.DataFrame]:
    """Whole months, so that many are equal; six of ten are censored."""
    truth = rng.normal(size=len(patient))
    time = np.ceil(30 * np.exp(-truth) * rng.exponential(size=len(patient)))
    targets = np.stack([time, rng.random(len(patient)) < 0.4], axis=1)
    times = np.unique(np.quantile(time, np.linspace(0.1, 0.9, 10)))
    task = Survival("months", tuple(times.tolist()))
    outputs = []
    for risk in truth + rng.normal(size=(runs, len(patient))):
        curves = np.exp(-np.exp(risk)[:, None] * times / 30)
        outputs.append(np.column_stack([risk, risk > 0, curves]))
    return task, _predictions(task, patient, targets, outputs)


def _predictions(task: Task, patient: np.ndarray, targets: np.ndarray, outputs: Sequence[np.ndarray]) -> pd.DataFrame:
    """The test part of a run for each element of outputs, all of one fold."""
    bags = [f"slide_{number:04d}" for number in range(len(patient))]
    sizes = np.ones(len(patient), np.int64)
    tables = [
        predictions_table(
            task,
            bag_ids=bags,
            patient_ids=patient.astype(str).tolist(),
            num_instances=sizes,
            fold=0,
            seed=seed,
            part=TEST,
            targets=targets,
            probabilities=one,
        )
        for seed, one in enumerate(outputs)
    ]
    return pd.concat(tables, ignore_index=True)


def _harrell(task: Task, table: pd.DataFrame, resamples: int) -> None:
    """Harrell's C of every run on the same resampled patients, as `bootstrap_intervals` draws them."""
    patients, patient = np.unique(table["patient_id"].to_numpy(str), return_inverse=True)
    runs = []
    for positions in table.groupby("seed").indices.values():
        rows = table.iloc[positions]
        time, event = targets_of(rows, task).T
        risk = probabilities_of(rows, task)[:, 0]
        runs.append((Cases(time, event > 0, risk, np.zeros(len(rows))), patient[positions]))
    for counts in patient_counts(len(patients), len(table), resamples, 0):
        for cases, which in runs:
            concordance(cases, counts[:, which])


def _write_table(path: Path, rng: np.random.Generator, rows: int, columns: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(["slide_id", *(f"gene_{number}" for number in range(columns))]) + "\n")
        for row in range(rows):
            file.write(f"slide_{row:04d}," + ",".join(map(str, rng.integers(0, 2, columns).tolist())) + "\n")


if __name__ == "__main__":
    main()
