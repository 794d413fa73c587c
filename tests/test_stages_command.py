"""Ways of training in several stages through the commands: sweeps, the final model, comparison, first weights from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

from mil_jax import aggregators, compare, evaluate, sweep, train
from mil_jax.engine.checkpoints import read_final
from mil_jax.interop.torch_checkpoints import export_state_dict
from mil_jax.run_folder.folder import RunFolder
from tests.commands import SMALL, run
from tests.invented import invent, write_labels, write_plain

pytestmark = pytest.mark.full

WAYS = {
    "mhim": ["--config.strategy.name=mhim", "--config.strategy.mask_random=0.3"],
    "ibmil": ["--config.strategy.name=ibmil", "--config.strategy.clusters=3", "--config.strategy.query_dim=4"],
}
STAGES = {"mhim": ["teacher", "mhim"], "ibmil": ["backbone", "dictionary", "ibmil"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own/ and own.csv, other/ and other.csv of other people, and a run of each way."""
    home = tmp_path_factory.mktemp("stages")
    for name, cohort in (("own", invent(16, slides=(1, 1))), ("other", invent(6, slides=(1, 1), seed=5))):
        if name == "other":
            features = {slide.replace("TCGA", "HOSP"): tiles for slide, tiles in cohort.features.items()}
            columns = {column: cohort.table[column].str.replace("TCGA", "HOSP") for column in ("slide_id", "case_id")}
            cohort = type(cohort)(features, cohort.table.assign(**columns))
        write_plain(cohort, home / name)
        write_labels(cohort, home / f"{name}.csv")
    for way in WAYS:
        assert train.main([*arguments(home, way), f"--config.run={home / way}"]) == 0
    return home


def arguments(home: Path, way: str) -> list[str]:
    data = [f"--config.data.features={home / 'own'}", f"--config.data.labels={home / 'own.csv'}"]
    more = ["--config.data.target=subtype", f"--config.data.cache={home / 'cache'}"]
    return [*SMALL, *data, *more, *WAYS.get(way, ())]


@pytest.mark.parametrize("way", WAYS)
def test_the_final_model_takes_all_stages_and_scores_strangers(home, way, tmp_path, capsys):
    common = [one for one in arguments(home, way) if "folds" not in one]
    final = [*common, "--config.splits.folds=0", f"--config.train.epochs_of={home / way}"]
    ended = run(train.main, [*final, f"--config.run={tmp_path / 'final'}"], capsys)
    assert ended.code == 0
    assert "its last state" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "final" / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["phase"] for row in rows)) == STAGES[way]
    files = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    assert evaluate.main(["--run", str(tmp_path / "final"), *files, "--out", str(tmp_path / "out")]) == 0
    scored = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert len(scored) == len(pd.read_csv(home / "other.csv"))
    assert np.isfinite(scored["prob_LUSC"]).all()


@pytest.mark.parametrize(
    ("way", "swept"),
    [
        ("mhim", ["strategy.mask_random=0.1,0.6", "strategy.init_student=fc,none"]),
        ("ibmil", ["strategy.dictionary_dropout=0,0.3", "strategy.clusters=2,3"]),
    ],
)
def test_settings_of_a_strategy_are_swept(home, way, swept, tmp_path):
    axes = [part for axis in swept for part in ("--sweep", axis)]
    assert sweep.main([*arguments(home, way), *axes, f"--config.run={tmp_path / 'sweep'}"]) == 0
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert len(summary["sweep"]["ranking"]) == 4
    assert len(list((tmp_path / "sweep" / "groups").iterdir())) == 2


def test_runs_of_both_ways_are_compared(home, tmp_path):
    named = [part for way in WAYS for part in ("--run", str(home / way))]
    assert compare.main([*named, "--out", str(tmp_path / "out")]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "differences.csv")) > 0


def test_a_teacher_from_a_run_and_from_a_file_without_ids(home, tmp_path, capsys):
    """The summary says where weights come from; those of a file, whose provenance nobody knows, as such."""
    plain = tmp_path / "plain"
    assert train.main([*arguments(home, ""), f"--config.run={plain}"]) == 0
    asked = [*arguments(home, "mhim"), "--config.strategy.init_student=all"]
    ended = run(train.main, [*asked, f"--config.strategy.teacher={plain}", f"--config.run={tmp_path / 'a'}"], capsys)
    assert ended.code == 0
    assert f"first teacher of each run is the same run of {plain}" in (tmp_path / "a" / "summary.md").read_text()

    opened = RunFolder.open(plain)
    params = jax.tree.map(lambda x: np.asarray(x)[0], read_final(opened.checkpoints)[0])
    fields = {name: value for name, value in opened.config["aggregator"].items() if name != "name"}
    module: Any = aggregators.create("abmil", 2, **fields)
    np.savez(tmp_path / "teacher.npz", **export_state_dict(module, params, "mhim_gated"))
    file = [f"--config.strategy.teacher={tmp_path / 'teacher.npz'}", f"--config.run={tmp_path / 'b'}"]
    assert run(train.main, [*asked, *file], capsys).code == 0
    assert "teacher.npz; provenance unknown" in (tmp_path / "b" / "summary.md").read_text()


def test_more_clusters_than_training_bags_are_said_before_training(home, capsys, tmp_path):
    asked = [*arguments(home, "ibmil"), "--config.strategy.clusters=40", f"--config.run={tmp_path / 'run'}"]
    ended = run(train.main, asked, capsys)
    assert ended.code == 2
    assert "strategy.clusters=40 asks for 40 clusters of training bags" in ended.err
    assert not (tmp_path / "run").exists()
