"""The tutorials run as they stand, and so do the README's commands, on small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.docs.pages import ROOT, blocks, command_of, lines
from tests.invented import invent

TUTORIALS = ROOT / "docs" / "tutorials"
# Each with what makes it small. The commands of a block are run one after the other, as a reader would.
SMALL = [
    "--config.train.epochs=1",
    "--config.splits.folds=2",
    "--config.train.patience=0",
    "--config.train.min_epochs=0",
]
OPTIONS = {
    "mil_jax.train": SMALL,
    "mil_jax.sweep": SMALL,
    "mil_jax.benchmark": [*SMALL, "--methods=mean pooling,ABMIL"],
    "mil_jax.profile": [
        "--config.data.synthetic.mean_size=50",
        "--config.data.synthetic.dim=16",
        "--config.splits.folds=2",
        "--config.data.max_buckets=1",
    ],
    "scripts/slides_to_model.py": ["--small"],
}


@pytest.fixture
def shell(tmp_path) -> dict[str, str]:
    """The environment of a shell that has `mil-jax`, this interpreter as `python`, and Slurm's `sbatch`, which runs a job at once."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "python": f'exec {sys.executable} "$@"',
        "mil-jax": f'exec {sys.executable} -m mil_jax."$1" "${{@:2}}"',
        "sbatch": f'exec {sys.executable} {Path(__file__).with_name("sbatch.py")} "$@"',
    }
    for name, line in scripts.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tools / name).chmod(0o755)
    paths = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    return {**os.environ, **paths, "MPLBACKEND": "agg"}


def run(command: list[str | Path], shell: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def result(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"]
    return summary


@pytest.mark.parametrize(
    "name",
    [
        "plot_own_training_loop.py",
        pytest.param("plot_features_to_table.py", marks=pytest.mark.full),
        pytest.param("plot_own_aggregator.py", marks=pytest.mark.full),
    ],
)
def test_a_python_tutorial_runs(name, shell):
    run([sys.executable, name], shell, TUTORIALS)


def test_every_python_tutorial_is_run():
    named = {parameter for mark in test_a_python_tutorial_runs.pytestmark for parameter in map(str, mark.args[1])}
    assert all(any(path.name in parameter for parameter in named) for path in TUTORIALS.glob("plot_*.py"))


@pytest.mark.full
def test_slides_to_a_table(tmp_path, shell):
    run(["bash", TUTORIALS / "slides_to_table.sh", tmp_path], shell, tmp_path)
    result(tmp_path / "run")


@pytest.mark.full
def test_one_run_on_a_cluster(tmp_path, shell):
    slides = [sys.executable, "-m", "data_prep.demo_slides", f"--out={tmp_path}/slides", "--count=8"]
    run([*slides, "--width=1024", "--height=1024"], shell, tmp_path)
    shell["PARTS"] = "3"
    shell["ENCODER"] = (
        "--encoder resnet18 --weights random --input-size 32 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --pool mean"
    )
    shell["TRAINING"] = " ".join([*SMALL, "--config.train.monitor=last", "--config.aggregator.feature_dim=16"])
    arguments: list[str | Path] = [tmp_path / "slides", tmp_path / "work", tmp_path / "slides" / "labels.csv"]
    run(["bash", TUTORIALS / "cluster.sh", *arguments], shell, tmp_path)
    assert len(list((tmp_path / "work" / "features").glob("*.h5"))) == 8
    result(tmp_path / "work" / "run")


@pytest.fixture
def data(tmp_path) -> Path:
    """What the README's commands name: features/, labels.csv, external/, external.csv."""
    for name, seed in (("features", 0), ("external", 1)):
        cohort = invent(seed=seed)
        (tmp_path / name).mkdir()
        table = cohort.table
        prefix = "" if seed == 0 else "OTHER-"
        for slide, features in cohort.features.items():
            np.save(tmp_path / name / f"{prefix}{slide}.npy", features)
        if prefix:
            table = table.assign(slide_id=prefix + table["slide_id"], case_id=prefix + table["case_id"])
        table.to_csv(tmp_path / ("labels.csv" if seed == 0 else "external.csv"), index=False)
    return tmp_path


@pytest.mark.full
def test_the_commands_of_the_readme_run(data, shell):
    given = [line for block in blocks(ROOT / "README.md", "") for line in lines(block)]
    ran = []
    for command in [command_of(line) for line in given if line.startswith(("mil-jax", "python scripts"))]:
        if command.module == "mil_jax.compare":  # with another run on the same slides
            run(["cp", "-r", "runs/subtype", "runs/other"], shell, data)
        start = [str(ROOT / command.module)] if command.module.startswith("scripts/") else ["-m", command.module]
        run([sys.executable, *start, *command.arguments, *OPTIONS.get(command.module, [])], shell, data)
        ran.append(command.module)
    assert {"mil_jax.train", "mil_jax.sweep", "mil_jax.evaluate", "mil_jax.compare", "mil_jax.benchmark"} <= set(ran)
    result(data / "runs" / "abmil")
    result(data / "runs" / "subtype")
    assert (data / "runs" / "subtype" / "evaluation" / "predictions.csv").is_file()
