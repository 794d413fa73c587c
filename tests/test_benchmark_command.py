"""The benchmark command: methods x tables x folds, resumed, one table at the end; PathGene's layout, protocols and methods."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import benchmark, train
from mil_jax.cli.benchmark_plan import Task, find_tasks, runs
from mil_jax.cli.progress import TrainingProgress
from mil_jax.config import find_config, parse, run_file
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.metrics.classification import binary_auc
from tests.commands import Ended, contents, run

FILE = """
from mil_jax.cli.benchmark_plan import Benchmark, Method, Protocol, Table

def get_benchmark():
    return Benchmark(
        name="small",
        settings={"task.name": "pathgene", "data.target": "label", "data.unknown_labels": "drop", "splits.folds": 3,
                  "data.patient": "regex:^P[0-9]+", "data.max_buckets": 1, "train.epochs": 2, "train.patience": 0},
        methods={
            "probe": Method("configs/linear_probe.py", {"strategy.strengths": (0.01, 1.0)}),
            "weak probe": Method("configs/linear_probe.py", {"strategy.strengths": (10.0, 100.0)}, {"strategy.strengths": (30.0, 99.0)}),
            "mean pooling": Method("configs/mean_pooling.py", {"aggregator.feature_dim": 4}),
        },
        protocols={"clean": Protocol(),
                   "pathgene": Protocol({"train.protocol": "reference", "train.monitor": "val_selection_score"}, own_folds=True)},
        tables={"EGFR_2": Table("EGFR_2", 2), "TP53_3": Table("(?:p53|TP53)_3", 3), "ALK_2": Table("ALK_2", 2)},
    )
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark file, 90 slides of 60 patients, and two tables as they come, with a third that is no task."""
    home = tmp_path_factory.mktemp("benchmark")
    (home / "small.py").write_text(FILE)
    for name in ("features", "tables"):
        (home / name).mkdir()
    rng = np.random.default_rng(0)
    gene, kind = (rng.random(60) < 0.25).astype(int), rng.integers(0, 3, 60)
    slides = [(patient, slide) for patient in range(60) for slide in range(1 + patient % 2)]
    lines: dict[str, list[str]] = {"gene": [], "kind": []}
    for number, (patient, slide) in enumerate(slides):
        rows = rng.normal(size=(4, 6)).astype(np.float32)
        rows[:, 0] += 3 * gene[patient] + 0.7 * rng.normal()
        rows[:, 1 + kind[patient]] += 2 + 0.7 * rng.normal()
        np.save(home / "features" / f"P{patient:02d}-{slide}.npy", rows)
        for name, labels in (("gene", gene), ("kind", kind)):
            lines[name].append(f"K:\\features\\P{patient:02d}-{slide}.pt,{labels[patient]},{number % 3}")
    lines["gene"][4] = f"{lines['gene'][4].rpartition(',')[0].rpartition(',')[0]},11,0"  # a typing error
    (home / "tables" / "A_EGFR_2_1.csv").write_text("path,label\nno,fold\n")
    (home / "tables" / "A_EGFR_2_1_1.csv").write_text("\ufeff" + "\n".join(lines["gene"]) + "\n", encoding="utf-8")
    (home / "tables" / "A_p53_3_1_1.csv").write_text("path,label,Fold\n" + "\n".join(lines["kind"]) + "\n")
    (home / "tables" / "A_other.csv").write_text("path,label,Fold\n")
    return home


def arguments(home: Path, out: str, *more: str) -> list[str]:
    data = [f"--config.data.features={home / 'features'}", f"--config.data.cache={home / 'cache'}"]
    return [
        "--config",
        str(home / "small.py"),
        "--tables",
        str(home / "tables"),
        *data,
        "--out",
        str(home / out),
        *more,
    ]


def command(home: Path, capsys: pytest.CaptureFixture[str], *more: str, out: str = "clean") -> Ended:
    return run(benchmark.main, arguments(home, out, *more), capsys)


@pytest.fixture(scope="module")
def clean(home: Path) -> Path:
    """Two methods on all tasks under the clean protocol."""
    assert benchmark.main(arguments(home, "clean", "--methods=probe,weak probe")) == 0
    return home / "clean"


def test_a_row_for_each_task_and_a_column_for_each_method(clean):
    content = json.loads((clean / "benchmark.json").read_text())
    assert (content["complete"], content["protocol"], content["selected_on_test"]) == (True, "clean", False)
    assert content["methods"] == ["probe", "weak probe"]
    assert content["tasks"] == ["A_EGFR_2", "A_TP53_3"]
    results = pd.read_csv(clean / "results.csv").set_index(["task", "method", "metric"])
    for task, method in (("A_EGFR_2", "weak_probe"), ("A_TP53_3", "probe")):
        summary = json.loads((clean / task / method / "summary.json").read_text())
        folds = [one["auc"] for one in summary["runs"]]
        row = results.loc[task, method.replace("_", " "), "auc"]
        assert (row["mean"], row["sd_folds"]) == pytest.approx((np.mean(folds), np.std(folds, ddof=1)))
        assert (row["folds"], row["bags"], row["patients"]) == (3, summary["num_bags"], 60)
        cell = f"{row['mean']:.3f} +- {row['sd_folds']:.3f}"
        assert cell in (clean / "summary.md").read_text()
    assert results.loc["A_EGFR_2", "probe", "auc"]["bags"] == 89  # one label was a typing error


def test_the_planted_signal_is_found_and_settings_are_those_of_method_and_task(clean):
    results = pd.read_csv(clean / "results.csv").set_index(["task", "method", "metric"])["mean"]
    assert results["A_EGFR_2", "probe", "auc"] > 0.9
    assert results["A_TP53_3", "probe", "auc"] > 0.9
    weak = [
        RunFolder.open(clean / task / "weak_probe").config["strategy"]["strengths"] for task in ("A_EGFR_2", "A_TP53_3")
    ]
    assert weak == [[10.0, 100.0], [30.0, 99.0]]
    splits = pd.read_csv(clean / "A_EGFR_2" / "probe" / "splits.csv")
    assert splits.groupby(["fold", "patient_id"])["part"].nunique().eq(1).all()
    assert set(splits["part"]) == {"train", "validation", "test"}


def test_a_run_that_has_ended_is_not_run_again(clean, home, capsys):
    before = contents(clean)
    ended = command(home, capsys, "--tasks=TP53_3", "--methods=weak probe")
    assert ended.code == 0
    assert "nothing is left to do" in ended.out
    runs_of = {name for name in before if "/" in name}
    after = contents(clean)
    assert {name for name in runs_of if after[name] != before[name]} == {"A_TP53_3/weak_probe/environment.json"}
    assert json.loads(after["benchmark.json"])["tasks"] == ["A_TP53_3"]
    other = command(home, capsys, "--tasks=TP53_3", "--methods=weak probe", "--config.strategy.strengths=(1.0,)")
    assert (other.code, "cannot be resumed with other settings: strategy.strengths" in other.err) == (2, True)


def test_under_pathgenes_protocol_the_tables_folds_are_used_and_the_test_part_is_said_to_have_chosen(
    home, capsys, monkeypatch
):
    """Stopped in its first epoch and resumed: the table comes only when the run has ended. Few cases do not change what chooses."""
    whole = TrainingProgress.steps

    def stopping(self: TrainingProgress, count: int) -> None:
        whole(self, count)
        os.kill(os.getpid(), signal.SIGTERM)

    chosen = ["--protocol=pathgene", "--methods=mean pooling", "--tasks=A_EGFR_2"]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "steps", stopping)
        assert command(home, capsys, *chosen, out="published").code == 143
    assert not (home / "published" / "benchmark.json").exists()
    ended = command(home, capsys, *chosen, out="published")
    assert ended.code == 0
    assert "the epoch with the best PathGene's score was SELECTED ON TEST" in " ".join(ended.out.split())
    folder = home / "published"
    assert "AUC (selected on test), protocol pathgene" in (folder / "summary.md").read_text()
    results = pd.read_csv(folder / "results.csv")
    assert set(results["selected_on"]) == {"test"}
    assert {"pathgene_auc", "pathgene_accuracy", "pathgene_f1"} <= set(results["metric"])
    splits = pd.read_csv(folder / "A_EGFR_2" / "mean_pooling" / "splits.csv")
    assert set(splits["part"]) == {"train", "test"}
    table = pd.read_csv(home / "tables" / "A_EGFR_2_1_1.csv", header=None, names=["path", "label", "Fold"])
    published = {
        row.path.rpartition("\\")[2].removesuffix(".pt"): row.Fold for row in table.itertuples() if row.label != 11
    }
    assert splits[splits["part"] == "test"].set_index("bag_id")["fold"].to_dict() == published


def test_check_shows_the_tasks_and_trains_nothing(home, capsys):
    ended = command(home, capsys, "--check", out="checked")
    assert ended.code == 0
    assert "1 table left unread, no tasks of small: A_other.csv" in ended.out
    assert "A_EGFR_2" in ended.out
    assert not (home / "checked").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--methods=prob"], "--methods=prob is unknown, did you mean 'probe'?"),
        (["--tasks=KRAS_2"], "--tasks=KRAS_2 is unknown"),
        (["--protocol=reference"], "--protocol=reference is unknown"),
        (["--config.data.labels=x.csv"], "--config.data.labels is set for each run, from --tables"),
        (["--config.run=x"], "--config.run is set for each run, from --out"),
        (["--tables=nowhere"], "--tables=nowhere: there is no such folder"),
        (["--tables="], "--tables is missing"),
        (["--config.aggregator.width=3"], "probe on A_EGFR_2: --config.aggregator.width is not a setting"),
        (["--config=configs/abmil.py"], "the file defines no get_benchmark()"),
        (["probe"], "'probe' is no option"),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_is_trained(home, capsys, more, sentence):
    ended = command(home, capsys, *more, out="refused")
    assert (ended.code, sentence in ended.err) == (2, True), ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (home / "refused").exists()


def test_every_method_of_pathgene_has_the_published_settings_and_every_table_is_known(tmp_path):
    pathgene = run_file(find_config("configs/benchmarks/pathgene.py"), "get_benchmark")
    stems = [
        "xiangya2_EGFR_2_1_1",
        "LUAD_KRAS_2_1",
        "xiangya2_p53_3_1_1",
        "xiangya2_p53_out_1",
        "LUAD_TP53_5_1",
        "xiangya2_te_4_1",
    ]
    for name in [*stems, "xiangya2_te_4", "SYN_TP53_exon_5", "xiangya2_STAS_2"]:
        (tmp_path / f"{name}.csv").write_text("path,label,Fold\n")
    tasks, strange = find_tasks(pathgene, str(tmp_path))
    assert strange == ["xiangya2_STAS_2.csv"]
    found = {task.name: (task.path.stem, task.classes) for task in tasks}
    assert found["xiangya2_te_4"] == ("xiangya2_te_4_1", 4)
    assert found["SYN_TP53_out"] == ("SYN_TP53_exon_5", 5)
    assert found["xiangya2_TP53_3"] == ("xiangya2_p53_3_1_1", 3)
    assert len(found) == 7
    assert len(pathgene.methods) == 13  # eleven, and pooling
    for classes in (2, 5):
        task = Task("A", "B", tmp_path / "A_B.csv", classes)
        for one in runs(pathgene, [task], list(pathgene.methods), "pathgene", ["--config.data.features=x"], tmp_path):
            config, _, _ = parse(list(one.arguments), train.define_flags)
            assert config.train.epochs == 99
            assert (config.train.protocol, config.train.monitor) == ("reference", "val_selection_score")
            softmax = one.method in ("DTFD-MIL", "IBMIL") or (one.method == "TransMIL" and classes > 2)
            assert config.task.loss_name == ("cross_entropy" if softmax else "binary_cross_entropy")


def test_the_general_benchmark_has_configs_that_are_there():
    general = run_file(find_config("configs/benchmarks/usual.py"), "get_benchmark")
    planned = list(runs(general, [Task()], list(general.methods), "clean", [], Path("out")))
    assert len(planned) == len(general.methods) >= 10
    for one in planned:
        config, _, _ = parse(list(one.arguments), train.define_flags)
        assert config.train.protocol == "clean"


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["clean", "pathgene"])
def test_the_invented_pathgene_cohort_reaches_what_was_planted(shared, tmp_path, protocol):
    """Three real-sized tables x three of the benchmark's methods, with fewer epochs and higher rates than published."""
    tables = shared / "data/cohorts/pathgene_synthetic"
    rng = np.random.default_rng(1)
    labels = {kind: pd.read_csv(tables / f"SYN_{kind}.csv") for kind in ("LUAD_TP53_2", "LUAD_KRAS_2", "TP53_exon_5")}
    scores: dict[str, np.ndarray] = {}
    planted = {}
    for place, (kind, table) in enumerate(labels.items()):
        classes = int(table["label"].max()) + 1
        score = 2.0 * np.eye(classes)[table["label"]] + rng.normal(size=(len(table), classes))
        planted[kind] = np.mean([binary_auc(_posterior(score)[:, k], table["label"] == k) for k in range(classes)])
        for path, row in zip(table["path"], score):
            own = scores.setdefault(Path(path).stem, np.zeros(9))
            own[[0, 2, 4][place] : [0, 2, 4][place] + classes] = row
    (tmp_path / "features").mkdir()
    for name, score in scores.items():
        np.save(tmp_path / "features" / f"{name}.npy", (score + 0.1 * rng.normal(size=(4, 9))).astype(np.float32))
    out = tmp_path / "out"
    settings = {
        "train.epochs": 12,
        "optimizer.lr": 1e-2,
        "optimizer.schedule.name": "constant",
        "data.features": tmp_path / "features",
    }
    settings |= {"data.cache": tmp_path / "cache", "data.patient": "regex:^SYN-[0-9]{4}"}
    given = [f"--config.{name}={value}" for name, value in settings.items()]
    chosen = [
        "--methods=mean pooling,ABMIL,DSMIL",
        "--tasks=SYN_LUAD_TP53_2,SYN_LUAD_KRAS_2,TP53_out",
        f"--protocol={protocol}",
    ]
    named = ["--config=configs/benchmarks/pathgene.py", "--tables", str(tables), "--out", str(out)]
    assert benchmark.main([*named, *chosen, *given]) == 0
    results = pd.read_csv(out / "results.csv").set_index(["metric", "task", "method"])["mean"]["auc"]
    best = results.groupby("task").max()
    for task, kind in (
        ("SYN_LUAD_TP53_2", "LUAD_TP53_2"),
        ("SYN_LUAD_KRAS_2", "LUAD_KRAS_2"),
        ("SYN_TP53_out", "TP53_exon_5"),
    ):
        assert best[task] > planted[kind] - 0.04, (results, planted)


def _posterior(score: np.ndarray) -> np.ndarray:
    """The best score for each class: its mean lies 2 higher in its own direction, with noise of deviation 1."""
    exponent = np.exp(2.0 * score)
    return exponent / exponent.sum(axis=1, keepdims=True)
