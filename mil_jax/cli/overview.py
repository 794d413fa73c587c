"""What a command says before it trains: what matched, what is left out, the splits, the plan; with --check as tables, too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil_jax.cli.console import console, frame_table, say
from mil_jax.data.splits.describe import describe
from mil_jax.data.splits.folds import PART_NAMES
from mil_jax.data.splits.splits import TEST
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.interop.feature_files import counted
from mil_jax.reports.run.data_notes import notes_on_data
from mil_jax.tasks.base import monitor_label

CLASS_COLUMNS_WIDTH, FOLD_COLUMN_WIDTH = 24, 11  # of the table that --check shows


def describe_experiment(experiment: Experiment, demo: Sequence[str] = (), *, everything: bool = False) -> None:
    """What matched and what is planned; with `everything` also the tables of --check. demo: what the demo part changed."""
    if experiment.embedded:
        say(
            "No data is named (data.features or data.shards): training on the embedded digits cohort with the config's demo part."
        )
        for line in demo:
            say(f"  demo: {line}")
    for line in notes_on_data(experiment):
        say(line)
    if everything:
        for title, table in _tables(experiment):
            if len(table):
                console.print(frame_table(title, table))
    cohort, ladder = experiment.cohort, experiment.ladder
    sizes = cohort.bags["num_instances"].to_numpy()
    say(experiment.residency.note)
    say(
        f"{counted(len(sizes), 'bag')}, {sizes.sum():,} instances; "
        f"{counted(len(ladder.lengths), 'bucket length')} ({', '.join(map(str, ladder.lengths))}), "
        f"{ladder.waste:.1%} padding"
    )
    for line in fitter_of(experiment).describe(_factors(experiment), _monitor(experiment)):
        say(line)


def _factors(experiment: Experiment) -> str:
    """ "3 label columns x 5 folds x 2 seeds"."""
    replicas, targets = experiment.plan.replicas, experiment.targets
    folds = sorted({len(target.splits.names) for target in targets})
    factors = [
        counted(folds[0], "fold") if len(folds) == 1 else f"{folds[0]} to {folds[-1]} folds",
        counted(experiment.config.train.num_seeds, "seed"),
    ]
    if len(targets) > 1:
        factors.insert(0, counted(len(targets), "label column"))
    settings = len({replica.overrides for replica in replicas})
    return " x ".join([*([counted(settings, "setting")] if settings > 1 else []), *factors])


def _tables(experiment: Experiment) -> list[tuple[str, pd.DataFrame]]:
    """(title, table) of all that --check shows."""
    cohort = experiment.cohort
    excluded = experiment.excluded.groupby("reason").size().rename("slides").reset_index()
    if len(experiment.targets) > 1:
        sizes = describe(cohort, np.zeros(len(cohort.bags), np.int64), [""], experiment.targets[0].splits).tables
        return [
            ("label columns", _label_columns(experiment)),
            ("label columns left out", experiment.left_out),
            ("bag sizes", sizes["bag_sizes"].tail(1).drop(columns="class")),
            ("excluded", excluded),
        ]
    target = experiment.targets[0]
    tables = []
    for title, table in describe(cohort, target.strata, target.task.strata_names, target.splits).tables.items():
        if title == "excluded":
            table = excluded
        if title == "counts":
            title, table = "bags in training/validation/test, by fold", _counts_by_fold(table)
        tables.append((title.replace("_", " "), table))
    return tables


def _label_columns(experiment: Experiment) -> pd.DataFrame:
    """A row for each target: bags of each class, bags without a label, test bags of the rarest class in the poorest fold."""
    rows = []
    for target in experiment.targets:
        counts = target.class_counts
        rarest = min(counts, key=lambda name: counts[name])
        members = target.strata == target.task.strata_names.index(rarest)
        rows.append(
            {
                "label column": target.name,
                "bags": ", ".join(f"{name}: {count}" for name, count in counts.items()),
                "without label": len(target.values) - sum(counts.values()),
                "fewest of the rarest class in a test part": int(
                    min((members & (part == TEST)).sum() for part in target.splits.parts)
                ),
            }
        )
    return pd.DataFrame(rows)


def _counts_by_fold(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows (fold, part, class, site, bags) -> a row per class and site, a column per fold, "train/val/test" in each cell."""
    folds = list(dict.fromkeys(counts["fold"]))
    shown = folds[: max(1, (console.width - CLASS_COLUMNS_WIDTH) // FOLD_COLUMN_WIDTH)]
    per_class = counts.groupby(["fold", "part", "class"], as_index=False)["bags"].sum().assign(site="all")
    both = pd.concat([per_class, counts]) if (counts["site"] != "").any() else per_class
    bags = both.set_index(["class", "site", "fold", "part"])["bags"].to_dict()
    rows = []
    for name in dict.fromkeys(counts["class"]):
        for site in sorted(
            {site for of_class, site, _, _ in bags if of_class == name}, key=lambda one: (one != "all", one)
        ):
            cells = {
                f"fold {fold}": "/".join(str(bags.get((name, site, fold, part), 0)) for part in PART_NAMES.values())
                for fold in shown
            }
            rows.append({"class": name, "site": site or "unknown", **cells})
    if len(shown) < len(folds):
        say(f"the first {len(shown)} of {len(folds)} folds are shown")
    return pd.DataFrame(rows)


def _monitor(experiment: Experiment) -> str:
    """What chooses the epoch of each run."""
    monitor = experiment.selection.monitor
    if monitor == "last":
        return "the last epoch of each run is taken"
    chosen_by = monitor_label(monitor, "").strip()
    if experiment.selection_part == TEST:
        return f"the epoch is chosen by the {chosen_by} of the TEST part (protocol reference)"
    asked, task = experiment.config.train.monitor, experiment.task
    why = f", not the {monitor_label(asked, '').strip()}: {task.few_cases}" if experiment.fallback else ""
    return f"the epoch is chosen by the validation {chosen_by}{why}"
