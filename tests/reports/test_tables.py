"""The summary of a run, its tables and its sentences say what happened, and say it alike everywhere."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from mil_jax.reports.run.statements import RunProtocol
from mil_jax.reports.run.summary import summarize, write_summary
from mil_jax.reports.tables import console_report, markdown
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks import MultiLabel
from tests.reports.conftest import invented_predictions

FREQUENCIES = {fold: np.array([0.5, 0.5]) for fold in range(5)}


def make_summary(task, predictions, protocol=None, **settings):
    frequencies = {fold: np.full(len(task.classes), 1 / len(task.classes)) for fold in range(50)}
    return summarize(task, predictions, frequencies, protocol or RunProtocol(), **settings)


def shown(summary, width=100):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(console_report(summary))
    return capture.get()


def cells(text: str, label: str) -> list[str]:
    """The cells of the Markdown row that begins with `label`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def said(summary, words) -> bool:
    return any(words in line for line in summary["statements"])


def test_the_table_shows_the_numbers_of_the_summary(binary, binary_predictions):
    summary = make_summary(binary, binary_predictions)
    text, auc = markdown(summary), summary["metrics"]["auc"]
    assert cells(text, "mean of folds")[0] == f"{auc['mean']:.3f}"
    assert cells(text, "worst fold")[0] == f"{auc['worst']:.3f}"
    assert cells(text, "95 % interval")[0] == f"{auc['low']:.3f} to {auc['high']:.3f}"
    assert cells(text, "sd over seeds")[0] == f"{auc['sd_seeds']:.3f}"
    assert auc["low"] < auc["estimate"] < auc["high"]
    assert cells(text, "control: majority")[0] == "0.500"
    assert cells(text, "control: bag size")[0] == f"{summary['controls']['bag size']['auc']:.3f}"


def test_every_fold_and_seed_has_its_cell(binary, binary_predictions):
    summary = make_summary(binary, binary_predictions, fold_names={0: "site A"})
    runs = {(run["fold"], run["seed"]): run["auc"] for run in summary["runs"]}
    assert cells(markdown(summary), "site A")[:2] == [f"{runs[0, 0]:.3f}", f"{runs[0, 1]:.3f}"]
    assert "site A" in shown(summary)


def test_one_seed_has_no_spread_over_seeds(binary, binary_predictions):
    summary = make_summary(binary, binary_predictions[binary_predictions["seed"] == 0])
    assert "sd over seeds" not in markdown(summary)
    assert cells(markdown(summary), "fold 4")[0] == f"{summary['runs'][4]['auc']:.3f}"


def test_many_folds_and_seeds_stay_readable_on_the_console(binary):
    summary = make_summary(binary, invented_predictions(binary, folds=20, seeds=12, bags=400))
    assert "seed 11" not in shown(summary)
    assert "mean of folds" in shown(summary)
    assert "seed 11" in markdown(summary)


def test_no_word_is_cut_on_a_terminal_of_80_columns(binary):
    parts = [invented_predictions(binary, bags=200, part=part) for part in ("test", "val")]
    text = shown(make_summary(binary, pd.concat(parts)), width=80)
    assert "…" not in text
    assert "threshold" in text


def test_a_fold_without_a_class_is_a_dash_and_is_said(binary, binary_predictions):
    table = binary_predictions[(binary_predictions["fold"] != 2) | (binary_predictions["target"] == "normal")]
    summary = make_summary(binary, table)
    assert cells(markdown(summary), "fold 2")[0] == "-"
    assert said(summary, "Fold 2: the AUC is undefined")
    assert np.isfinite(summary["metrics"]["auc"]["estimate"])


def test_a_run_that_diverged_is_named(binary, binary_predictions):
    table = binary_predictions.copy()
    table.loc[(table["fold"] == 1) & (table["seed"] == 0), ["prob_normal", "prob_tumor"]] = np.nan
    assert said(
        make_summary(binary, table), "no finite predictions or no labelled test bag, and no metrics: fold 1 seed 0"
    )


def test_selection_on_test_is_said_everywhere(tmp_path, binary, binary_predictions):
    folder = RunFolder.create(tmp_path / "run", {}, {})
    summary = write_summary(
        folder,
        task=binary,
        predictions=binary_predictions,
        history=[],
        constants=FREQUENCIES,
        protocol=RunProtocol(protocol="reference", select="val_auc", selected_on_test=True),
    )
    assert "(selected on test)" in shown(summary)
    assert said(summary, "SELECTED ON TEST")
    headings = [line for line in (folder.path / "summary.md").read_text().splitlines() if line.startswith("#")]
    assert "(selected on test)" in headings[0]
    assert (folder.read_table("predictions.csv")["selected_on"] == "test").all()


def test_no_threshold_comes_from_a_part_that_was_the_test_part(binary):
    parts = pd.concat([invented_predictions(binary, bags=200, part=part) for part in ("test", "val")])
    assert "accuracy_at_threshold" in make_summary(binary, parts)["metrics"]
    on_test = make_summary(binary, parts, RunProtocol("reference", "val_auc", selected_on_test=True))
    assert "accuracy_at_threshold" not in on_test["metrics"]


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (RunProtocol(select="last"), "last epoch"),
        (RunProtocol(select="val_loss"), "best validation loss was taken"),
        (RunProtocol(order="fold"), "same order"),
        (RunProtocol(notes=("The monitor is the loss.",)), "The monitor is the loss."),
    ],
    ids=["last", "val_loss", "order of a fold", "notes"],
)
def test_what_was_done_is_said(binary, binary_predictions, protocol, words):
    assert said(make_summary(binary, binary_predictions, protocol), words)


def test_clean_runs_with_their_own_order_say_nothing_of_the_kind(binary, binary_predictions):
    summary = make_summary(binary, binary_predictions)
    assert not said(summary, "TEST")
    assert not said(summary, "same order")
    assert not said(summary, "leak")


def test_a_leak_adds_leak_free_rows_and_a_sentence(binary, binary_predictions):
    leaked = binary_predictions.assign(leaked=binary_predictions["bag_id"].isin(["slide_0", "slide_1"]))
    summary = make_summary(binary, leaked)
    assert said(summary, "The splits leak")
    assert cells(markdown(summary), "leak-free, estimate")[0] == f"{summary['leak_free']['auc']['estimate']:.3f}"


def test_bag_sizes_that_tell_the_class_are_said(binary, binary_predictions):
    sizes = np.where(binary_predictions["target"] == "tumor", 100, 10)
    assert said(make_summary(binary, binary_predictions.assign(num_instances=sizes)), "may be bag size")


def test_labels_of_a_multi_label_task_have_a_table_of_their_own():
    task = MultiLabel(("EGFR", "KRAS", "ALK"))
    summary = make_summary(task, invented_predictions(task))
    assert cells(markdown(summary), "KRAS")[0] == f"{summary['metrics']['auc_KRAS']['mean']:.3f}"


def test_the_run_is_complete_only_once_everything_is_written(tmp_path, binary, binary_predictions, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", {}, {})
    history = [{"epoch": epoch, "fold": 0, "seed": 0, "train_loss": 1.0 / (epoch + 1)} for epoch in range(3)]
    settings = {
        "task": binary,
        "predictions": binary_predictions,
        "history": history,
        "constants": FREQUENCIES,
        "protocol": RunProtocol(),
        "notes": ["120 bags matched."],
        "facts": {"programs compiled": 7},
    }
    with monkeypatch.context() as patch:
        patch.setattr("mil_jax.reports.run.summary.markdown", lambda summary: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_summary(folder, **settings)
    assert not folder.is_complete
    write_summary(folder, **settings)
    assert folder.is_complete
    assert {path.name for path in folder.figures.iterdir()} == {"training_curves.png", "roc_curves.png"}
    text = (folder.path / "summary.md").read_text()
    assert "120 bags matched." in text
    assert "| programs compiled | 7 |" in text
    pd.testing.assert_frame_equal(folder.read_table("predictions.csv"), binary_predictions, check_dtype=False)


def test_summary_json_gives_the_tables_back(tmp_path, binary, binary_predictions):
    table = binary_predictions[(binary_predictions["fold"] != 2) | (binary_predictions["target"] == "normal")]
    summary = make_summary(binary, table)
    folder = RunFolder.create(tmp_path / "run", {}, {})
    folder.write_json("summary.json", summary)
    read = json.loads((folder.path / "summary.json").read_text())
    assert markdown(read) == markdown(summary)
