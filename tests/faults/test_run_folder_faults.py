"""Wrong uses of a run folder end in one sentence, and leave what is there as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

import mil_jax as mj
from mil_jax.errors import RunFolderError, UserError
from mil_jax.reports.comparison.load import read_method
from mil_jax.run_folder import folder as module
from mil_jax.run_folder.folder import RunFolder

CONFIG = {"optimizer": {"lr": 2e-4}, "aggregator": {"name": "abmil"}}
DATA = {"features": "a1", "labels": "b2"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.setattr(module, "describe_environment", lambda: {"started": "now"})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_existing_run_needs_resume_or_overwrite(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, DATA)
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match=r"--resume.*--overwrite"):
        RunFolder.create(tmp_path / "run", CONFIG, DATA)
    assert contents(tmp_path) == before


def test_resuming_with_other_settings_names_each_of_them(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, DATA)
    before = contents(tmp_path)
    other = {"optimizer": {"lr": 1e-3}, "aggregator": {"name": "abmil", "dropout": 0.25}}
    said = r"optimizer.lr \(was 0.0002, now 0.001\), aggregator.dropout \(was not set"
    with pytest.raises(RunFolderError, match=said):
        RunFolder.create(tmp_path / "run", other, DATA, resume=True)
    assert contents(tmp_path) == before


def test_resuming_with_other_data_names_what_changed(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, DATA)
    with pytest.raises(RunFolderError, match=r"other data: labels changed"):
        RunFolder.create(tmp_path / "run", CONFIG, {**DATA, "labels": "c3"}, resume=True)


def test_resume_and_overwrite_together_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match="exclude each other"):
        RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True, overwrite=True)


@pytest.mark.parametrize("config_json", [None, "{}", '{"mil_jax_version": '])
def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path, config_json):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    if config_json is not None:
        (folder / "config.json").write_text(config_json)
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.create(folder, CONFIG, DATA, overwrite=True)
    assert contents(tmp_path) == before


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError, match="name another folder"):
        RunFolder.create(tmp_path / "run", CONFIG, DATA)
    with pytest.raises(RunFolderError, match="cannot be created"):
        RunFolder.create(tmp_path / "run" / "below", CONFIG, DATA)


def test_a_damaged_summary_is_named(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    (run.path / "summary.json").write_text('{"complete": tr')
    with pytest.raises(RunFolderError, match=r"summary.json cannot be read"):
        RunFolder.require_complete(run.path)


COMPLETE = Path(__file__).parents[1] / "compatibility" / "runs_0_1" / "complete"


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.drop(columns="patient_id"),
        lambda table: table.drop(columns="seed"),
        lambda table: table.drop(columns="target"),
        lambda table: table.assign(bag_id=None),
        lambda table: table.assign(fold="first"),
        lambda table: table.assign(**{next(name for name in table if name.startswith("prob_")): "high"}),
    ],
    ids=["no patients", "no seeds", "no targets", "no ids", "folds in words", "probabilities in words"],
)
def test_a_comparison_of_damaged_predictions_names_the_run(tmp_path, damage):
    shutil.copytree(COMPLETE, tmp_path / "run")
    read_method("A", [tmp_path / "run"])
    path = tmp_path / "run" / "predictions.csv"
    damage(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(RunFolderError, match=rf"^{tmp_path / 'run'} is damaged"):
        read_method("A", [tmp_path / "run"])


@pytest.mark.parametrize(
    "row",
    ["[1]", '{"fold": "x"}', '{"seed": {}}', '{"epoch": 0, "steps": [null]}', '{"fold": 0.5}', '{"val_auc": -1e308}'],
)
def test_a_damaged_row_of_metrics_is_named(tmp_path, row):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.append_metrics([{"phase": "supervised", "epoch": 0, "fold": 0, "seed": 0}])
    (run.path / "metrics.jsonl").write_text(row + "\n" + (run.path / "metrics.jsonl").read_text())
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl, line 1 is no row of metrics"):
        run.read_metrics()


@pytest.mark.parametrize(
    "choices",
    [
        {"runs_side_by_side": 7},
        {"runs_side_by_side": {"supervised": {"long": 5}}},
        {"ladder": ["8"]},
        {"residency": None},
        {"blocks": 1},
    ],
)
def test_damaged_choices_are_named(tmp_path, choices):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.write_choices({"ladder": [8], "blocks": True, "runs_side_by_side": {"supervised": {"8": 5}}})
    assert run.choices["ladder"] == [8]
    run.write_choices(choices)
    with pytest.raises(RunFolderError, match=rf"config\.json is damaged.*choices\.{next(iter(choices))}"):
        _ = run.choices


def test_metrics_of_a_damaged_summary_are_a_sentence(tmp_path):
    shutil.copytree(COMPLETE, tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "runs": 10**40}))
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged"):
        _ = mj.load(tmp_path / "run").metrics


def test_reading_where_no_run_is_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.require_complete(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_file_before(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.write_json("summary.json", {"complete": False})

    def full(self, *arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="disk is full"):
        run.write_json("summary.json", {"complete": True})
    monkeypatch.undo()
    assert not run.is_complete
    assert not list(run.path.glob("*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_while_metrics_grow_is_the_users_to_mend(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"No space left.*--resume"):
        run.append_metrics([{"epoch": 0, "fold": 0, "seed": 0}])


def test_of_two_starts_at_once_one_has_the_folder(tmp_path):
    """Both begin at the same instant, 40 times; neither waits for the other to end."""
    for attempt in range(40):
        start, children = time.monotonic() + 0.02, []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                while time.monotonic() < start:
                    pass
                try:
                    RunFolder.create(tmp_path / str(attempt), CONFIG, DATA)
                except RunFolderError:
                    os._exit(7)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 7]


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_a_process_trains_into_is_refused(tmp_path, how):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        RunFolder.create(tmp_path / "run", CONFIG, DATA)
        os.write(writing, b"made")
        signal.pause()
    os.read(reading, 4)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match="another process trains into it now" if how else "already holds a run"):
        RunFolder.create(tmp_path / "run", CONFIG, DATA, **how)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True).resumed
