"""The command data_prep.shard: what it prints, and one sentence with exit code 2 for what the user can fix."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mil_jax.data.shards.reader import Shards


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_prep.shard", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def features(tmp_path):
    (tmp_path / "features").mkdir()
    for k in range(2):
        np.save(tmp_path / "features" / f"s{k}.npy", np.random.default_rng(k).normal(size=(10, 4)).astype(np.float32))
    return tmp_path / "features"


def test_features_become_shards(features, tmp_path):
    done = run("--features", features, f"--out={tmp_path / 'shards'}", "--encoder-name=uni_v1", "--dtype=float16")
    assert done.returncode == 0, done.stderr
    shards = Shards.open(tmp_path / "shards")
    assert shards.slide_ids == ["s0", "s1"]
    assert shards.dtype == np.float16
    assert set(shards.provenance["encoder"]) == {"uni_v1"}
    for said in (
        "plain folder: 2 slides",
        "Padded lengths: 16",
        "Wrote 2 slides, 20 instances",
        "Largest relative error",
    ):
        assert said in done.stdout


def test_help_holds_an_example():
    assert "python -m data_prep.shard --features features/" in run("--help").stdout


@pytest.mark.parametrize(
    "case", ["no such folder", "non-finite", "existing folder", "unknown flag", "stray argument", "no out"]
)
def test_user_errors_are_one_sentence_and_exit_2(features, tmp_path, case):
    arguments = ["--features", str(features), "--out", str(tmp_path / "shards")]
    if case == "no such folder":
        arguments[1] = str(tmp_path / "nowhere")
    elif case == "non-finite":
        np.save(features / "s1.npy", np.full((3, 4), np.nan, np.float32))
    elif case == "existing folder":
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "mine.txt").touch()
    elif case == "unknown flag":
        arguments.append("--encodr-name=x")
    elif case == "no out":
        arguments = arguments[:2]
    else:
        arguments.append("shards/")
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stopped_conversion_leaves_nothing_behind(features, tmp_path):
    script = textwrap.dedent(
        """
        import os, signal
        from data_prep import shard
        from mil_jax.data.shards import convert
        convert._with_encoder = lambda slide, _: slide if slide.slide_id == "s0" else os.kill(os.getpid(), signal.SIGTERM)
        shard.run_command(shard.main)
        """
    )
    command = [sys.executable, "-c", script, "--features", str(features), "--out", str(tmp_path / "shards")]
    assert subprocess.run(command, check=False).returncode == 143
    assert [path.name for path in tmp_path.iterdir()] == ["features"]
