"""What `--sweep` may name, and which settings come of it; whatever is wrong is one sentence and exit code 2."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mil_jax import sweep
from mil_jax.cli.sweep_grid import draw_points, grouped, read_axes
from mil_jax.config import ConfigDict, find_config, load_config
from mil_jax.reports.sweep import choose
from tests.commands import SMALL, run

BAD = {
    "no sweep": ([], "--sweep is missing"),
    "a setting that does not exist": (["--sweep", "optimizer.rl=1,2"], "did you mean --sweep optimizer.lr?"),
    "a value of another type": (["--sweep", "optimizer.lr=fast,2"], "--sweep optimizer.lr=fast must be a number"),
    "a value out of its limits": (["--sweep", "optimizer.lr=-1,2"], "optimizer.lr=-1.0 must be at least 0"),
    "a value that the method cannot take": (["--sweep", "aggregator.dropout=0,1.5"], "aggregator.dropout=1.5"),
    "the same setting twice": (["--sweep", "optimizer.lr=1,2", "--sweep", "optimizer.lr=3"], "given twice"),
    "a value twice": (["--sweep", "optimizer.lr=1e-3,0.001"], "names 0.001 twice"),
    "an empty value": (["--sweep", "optimizer.lr=1e-3,"], "holds an empty value"),
    "no values": (["--sweep", "optimizer.lr"], "has no values"),
    "one value": (["--sweep", "optimizer.lr=1"], "one value only"),
    "another cohort": (["--sweep", "data.filter=a,b"], "changes the cohort"),
    "other splits": (["--sweep", "splits.seed=1,2"], "changes the cohort"),
    "another run folder": (["--sweep", "run=a,b"], "names the run folder"),
    "what changes no result": (["--sweep", "train.memory_gib=1,2"], "changes no result"),
    "the luckiest seed": (["--sweep", "train.seed=1,2"], "luckiest seed"),
    "another method": (["--sweep", "aggregator.name=abmil,dsmil"], "a config of its own"),
    "no validation": (["--sweep", "optimizer.lr=1,2", "--config.train.monitor=last"], "leaves no score to choose"),
    "a range without a number of draws": (["--sweep", "optimizer.lr=1e-5:1e-3"], "say with --random N"),
    "a range upside down": (["--sweep", "optimizer.lr=1e-3:1e-5", "--random=2"], "from a lower to a higher"),
    "a logarithm of 0": (["--sweep", "aggregator.dropout=0:0.5:log", "--random=2"], "both above 0"),
    "no such scale": (["--sweep", "optimizer.lr=1e-5:1e-3:cube", "--random=2"], "is no range"),
    "more draws than the grid has": (["--sweep", "optimizer.lr=1,2", "--random=5"], "the grid has 2 settings"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_swept_is_one_sentence_and_leaves_nothing(case, tmp_path, capsys, monkeypatch):
    arguments, said = BAD[case]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = [argument for argument in SMALL if "splits" not in argument]
    ended = run(sweep.main, [*small, *arguments, f"--config.run={tmp_path / 'run'}"], capsys)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def config() -> ConfigDict:
    return load_config(find_config("configs/abmil.py"))


def points_of(texts: list[str], config: ConfigDict, random: int = 0) -> list[dict]:
    return draw_points(read_axes(texts, config, random=random), config, random)


def test_the_grid_is_all_combinations_with_the_types_of_the_settings(config):
    points = points_of(["optimizer.lr=1e-4,3e-4", "aggregator.gated=true,false", "train.epochs=5,10"], config)
    assert len(points) == 8
    assert points[0] == {"optimizer.lr": 1e-4, "aggregator.gated": True, "train.epochs": 5}
    assert [type(value) for value in points[-1].values()] == [float, bool, int]


def test_groups_are_the_combinations_of_what_is_not_a_number_of_the_program(config):
    points = points_of(
        ["aggregator.dropout=0,0.25", "aggregator.gated=true,false", "task.label_smoothing=0,0.1"], config
    )
    groups = grouped(points, config)
    assert [group.name for group in groups] == ["aggregator.gated=true", "aggregator.gated=false"]
    assert [group.config.aggregator.gated for group in groups] == [True, False]
    assert sorted(number for group in groups for number in group.numbers) == list(range(8))
    assert groups[0].overrides[1] == (("aggregator.dropout", 0.0), ("task.label_smoothing", 0.1))


def test_random_points_lie_in_their_ranges_and_differ(config):
    texts = [
        "optimizer.lr=1e-5:1e-2:log",
        "aggregator.dropout=0:0.5",
        "aggregator.feature_dim=64:512",
        "train.epochs=5,9",
    ]
    points = points_of(texts, config, 40)
    assert points == points_of(texts, config, 40)
    assert len({tuple(point.values()) for point in points}) == 40
    logs = [math.log10(point["optimizer.lr"]) for point in points]
    assert all(-5 <= one <= -2 for one in logs)
    assert 8 < sum(one < -3.5 for one in logs) < 32
    assert all(0 <= point["aggregator.dropout"] <= 0.5 for point in points)
    assert all(isinstance(point["aggregator.feature_dim"], int) for point in points)


def test_random_points_of_a_grid_are_some_of_it(config):
    texts = ["optimizer.lr=1e-4,3e-4,1e-3", "aggregator.dropout=0,0.25,0.5"]
    some, grid = points_of(texts, config, 4), points_of(texts, config)
    assert len(some) == 4
    assert all(point in grid for point in some)


def test_a_setting_without_a_score_in_a_fold_is_not_chosen_there_nor_the_best():
    rows = [
        *({"number": 0, "fold": fold, "seed": 0, "score": 0.9, "epoch": 3, "failed": False} for fold in (0, 1)),
        {"number": 1, "fold": 0, "seed": 0, "score": 0.1, "epoch": 2, "failed": False},
        {"number": 1, "fold": 1, "seed": 0, "score": math.nan, "epoch": 0, "failed": True},
    ]
    choice = choose(pd.DataFrame(rows), "val_loss", {0: "fold 0", 1: "fold 1"})
    assert choice.of_fold == {0: 1, 1: 0}
    assert choice.best == 0
    assert choice.table["number"].tolist() == [0, 1]
    assert choose(pd.DataFrame(rows[:2]), "val_auc", {0: "fold 0", 1: "fold 1"}).best == 0
