"""The optional loggers, with stand-ins for their packages."""

from __future__ import annotations

import sys
import types

import pytest

from mil_jax.cli.loggers import open_loggers
from mil_jax.errors import ConfigError
from mil_jax.run_folder.folder import RunFolder

ROW = {"epoch": 3, "fold": 1, "seed": 0, "train_loss": 0.5, "val_auc": float("nan"), "phase": "plain"}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"lr": 0.1}, {})


class Recorder:
    def __init__(self, *arguments, **settings):
        self.settings, self.calls, self.closed = settings, [], False

    def add_scalar(self, *call):
        self.calls.append(call)

    def log(self, values):
        self.calls.append(values)

    def close(self):
        self.closed = True

    finish = close


@pytest.mark.parametrize(("setting", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_names_the_extra(folder, monkeypatch, setting, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"mil-jax\[{setting}\]"):
        open_loggers(folder, **{setting: True})


def test_tensorboard_gets_finite_numbers_by_run_and_epoch(folder, monkeypatch):
    writer = Recorder()
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=lambda path: writer))
    loggers = open_loggers(folder, tensorboard=True)
    loggers.log([ROW])
    loggers.close()
    assert writer.calls == [("train_loss/fold_1_seed_0", 0.5, 3)]
    assert writer.closed


def test_wandb_gets_the_settings_and_one_record_per_epoch(folder, monkeypatch, capsys):
    runs = []
    monkeypatch.setitem(
        sys.modules,
        "wandb",
        types.SimpleNamespace(init=lambda **settings: runs.append(Recorder(**settings)) or runs[0]),
    )
    loggers = open_loggers(folder, wandb=True)
    assert "Weights & Biases gets: the name of the run folder (run), all settings" in capsys.readouterr().out.replace(
        "\n", " "
    )
    loggers.log([ROW, {**ROW, "fold": 2}])
    loggers.close()
    assert runs[0].settings["config"] == {"lr": 0.1}
    assert runs[0].calls == [{"train_loss/fold_1_seed_0": 0.5, "train_loss/fold_2_seed_0": 0.5, "epoch": 3}]
    assert runs[0].closed


def test_without_either_nothing_is_imported(folder, monkeypatch):
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)  # to import it would raise
    loggers = open_loggers(folder)
    loggers.log([ROW])
    loggers.close()
