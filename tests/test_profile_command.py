"""The profiling command from end to end, and what it says about why a run is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mil_jax import profile, train
from mil_jax.config import parse
from mil_jax.data.splits.splits import TRAIN
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.prepare import prepare
from mil_jax.profiling.forecast import BucketFigures, Forecast, plan_epoch
from mil_jax.profiling.program_cost import Measured, ProgramCost
from mil_jax.profiling.report import PART_NAMES, Roofline, verdict
from tests.commands import SMALL, run
from tests.invented import invent, write_labels, write_plain

DRAWN = (
    "--config=configs/abmil.py",
    "--config.aggregator.feature_dim=8",
    "--config.aggregator.attention_dim=4",
    "--config.data.synthetic.bags=40",
    "--config.data.synthetic.mean_size=30",
    "--config.data.synthetic.dim=6",
    "--config.data.max_buckets=2",
    "--config.splits.folds=2",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--config.data.cache={tmp_path_factory.mktemp('cache')}"


def test_a_cohort_of_drawn_sizes_is_profiled_without_any_data(cache, tmp_path, capsys):
    arguments = [*DRAWN, cache, f"--config.run={tmp_path / 'out'}", "--seconds=0.01", f"--trace={tmp_path / 'trace'}"]
    ended = run(profile.main, arguments, capsys)
    assert ended.code == 0
    for said in ("padding", "GFLOP", "compile", "bags/s", "roofline", "Forecast", "The largest part is", "40 bags"):
        assert said in ended.out
    figures = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert len(figures["buckets"]) == 2
    assert sum(bucket["bags"] for bucket in figures["buckets"]) == 40
    assert set(figures["forecast"]["seconds"]) == set(PART_NAMES)
    assert figures["reading_bytes_per_second"] is None
    assert figures["plan"]["cohort_bytes"] > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_features_on_disk_are_profiled_without_making_a_run(cache, tmp_path, capsys):
    cohort = invent(16)
    features, labels = write_plain(cohort, tmp_path / "features"), write_labels(cohort, tmp_path / "labels.csv")
    data = [f"--config.data.features={features}", f"--config.data.labels={labels}", "--config.data.target=subtype"]
    ended = run(profile.main, [*SMALL, *data, cache, f"--config.run={tmp_path / 'out'}", "--seconds=0.01"], capsys)
    assert ended.code == 0
    assert "Reading the shards" in ended.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["profile.json"]


def test_help_shows_examples_and_flags(capsys):
    ended = run(profile.main, ["--help"], capsys)
    assert ended.code == 0
    assert "python -m mil_jax.profile --config configs/abmil.py" in ended.out
    assert "--trace" in ended.out


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (train.main, DRAWN, "mil_jax.profile"),
        (profile.main, (*DRAWN, "--config.data.features=features"), "data.features"),
        (profile.main, (*DRAWN, "--config.splits.file=splits.csv"), "splits.file"),
        (profile.main, ("--config=configs/abmil.py", "--config.data.synthetic.bags=-1"), "at least 0"),
        (profile.main, ("--config=configs/abmil.py", "--config.data.synthetic.bag=9"), "data.synthetic.bags"),
        (profile.main, (*DRAWN, "--seconds=-1"), "--seconds"),
        (profile.main, (), "--config is missing"),
    ],
)
def test_bad_input_is_one_sentence(main, arguments, said, cache, capsys):
    ended = run(main, [*arguments, *([cache] if arguments else [])], capsys)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def experiment(cache) -> Experiment:
    config, _, _ = parse([*DRAWN, cache], profile.define_flags)
    return prepare(config)


def figures_of(experiment: Experiment, operations: float = 1e9) -> list[BucketFigures]:
    cost = ProgramCost(operations, 1, 0, 0, 0.0, 3.0)
    return [BucketFigures(length, cost, cost, Measured(0.1, 0.001, 2), 0.05) for length in experiment.ladder.lengths]


def forecast_of(part: str, padding: float = 0.0, idle: float = 0.0) -> Forecast:
    seconds = dict.fromkeys(PART_NAMES, 1.0) | {part: 60.0}
    return Forecast(seconds, 1.0, 100, 1000, padding, idle)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("evaluation", "train.monitor=last"),
        ("dispatches", "data.max_buckets"),
        ("host", "train.monitor=last"),
        ("reading", "float16"),
        ("compilation", "data.max_buckets=1"),
    ],
)
def test_the_verdict_names_the_largest_part_and_the_setting_that_changes_it(experiment, part, setting):
    figures = figures_of(experiment)
    lines = [Roofline(0.3, "products", 0.1)] * len(figures)
    said = verdict(experiment, plan_epoch(experiment), figures, lines, forecast_of(part), devices=2, vectorised=False)
    assert PART_NAMES[part] in said[0]
    assert "60 s of 65 s (92%)" in said[0]
    assert setting in said[1]


@pytest.mark.parametrize(
    ("line", "operations", "padding", "idle", "said"),
    [
        (Roofline(0.8, "memory", 0.1), 1e12, 0.0, 0.0, "80% of what this machine's memory allows"),
        (Roofline(0.2, "products", 0.9), 1e12, 0.0, 0.0, "they move 90% of what memory can"),
        (Roofline(0.2, "products", 0.1), 1e12, 0.0, 0.0, "--trace"),
        (Roofline(0.02, "products", 0.1), 1e6, 0.0, 0.0, "too little work"),
        (Roofline(0.8, "products", 0.1), 1e12, 0.3, 0.0, "data.max_padding=0"),
        (Roofline(0.8, "products", 0.1), 1e12, 0.0, 0.4, "do not fill 2 devices evenly"),
    ],
)
def test_the_verdict_on_steps_follows_from_the_figures(experiment, line, operations, padding, idle, said):
    figures = figures_of(experiment, operations)
    lines, forecast = [line] * len(figures), forecast_of("steps", padding, idle)
    sentences = verdict(experiment, plan_epoch(experiment), figures, lines, forecast, devices=2, vectorised=False)
    assert any(said in sentence for sentence in sentences)


def test_a_planned_epoch_has_every_training_bag_of_every_run_once(experiment):
    plan, training = plan_epoch(experiment), (experiment.parts == TRAIN).sum(axis=1)
    runs = [training[replica.fold] for replica in experiment.plan.replicas]
    assert plan.steps.sum(axis=1).tolist() == runs
    assert plan.evaluated.sum() + plan.tested.sum() + sum(runs) == 40 * len(runs)


def test_the_index_of_drawn_sizes_is_the_same_every_time(cache, tmp_path: Path):
    config, _, _ = parse([*DRAWN, cache], profile.define_flags)
    sizes = [prepare(config).cohort.bags["num_instances"].tolist() for _ in range(2)]
    assert sizes[0] == sizes[1]
    assert 20 < sum(sizes[0]) / 40 < 45
