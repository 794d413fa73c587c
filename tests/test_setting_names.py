"""Settings that were renamed: the old names work wherever settings are given, and the present ones are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mil_jax import evaluate, sweep, train
from mil_jax.cli.benchmark_plan import Benchmark, Method, Protocol, Task, runs
from mil_jax.config import load_config, parse
from mil_jax.errors import ConfigError, RenamedSetting
from mil_jax.settings import RENAMED, SETTINGS, present_settings
from tests.commands import run

VALUES = {  # other than the defaults
    "data.max_shapes": 3,
    "data.max_waste": 0.5,
    "data.stream_gib": 2.0,
    "train.bag_devices": 2,
    "train.bags_at_a_time": 4,
    "train.balanced": True,
    "train.batch_devices": 2,
    "train.select": "val_auc",
    "train.slots_per_dispatch": 8,
}


def said(recwarn: pytest.WarningsRecorder) -> list[str]:
    """What was said of settings; commands print it."""
    return [str(one.message) for one in recwarn if issubclass(one.category, RenamedSetting)]


def settings_of(config, name):
    group, field = name.split(".")
    return config[group][field]


def config_file(folder: Path, *lines: str, base: str = 'start_from("configs/abmil.py")') -> Path:
    text = "from mil_jax.config import ConfigDict, base_config, start_from\n\n\ndef get_config():\n"
    path = folder / "own.py"
    path.write_text(text + "".join(f"    {line}\n" for line in (f"config = {base}", *lines, "return config")))
    return path


def test_every_old_name_leads_to_a_setting_and_is_none_itself():
    assert RENAMED.keys() == VALUES.keys()
    assert set(RENAMED.values()) <= SETTINGS.keys()
    assert not RENAMED.keys() & SETTINGS.keys()


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_on_the_command_line(old, recwarn):
    arguments = ["--config=configs/abmil.py", f"--config.{old}={VALUES[old]}"]
    config, _, _ = parse(arguments, lambda values: None)  # the demo part applies
    assert settings_of(config, RENAMED[old]) == VALUES[old] != SETTINGS[RENAMED[old]].default
    assert said(recwarn) == [f"{old} is now {RENAMED[old]}"]


def test_an_old_value_is_said_and_read_as_the_present_one(tmp_path, recwarn):
    sentence = "train.order=shared is now train.order=fold"
    config, _, _ = parse(["--config=configs/abmil.py", "--config.train.order=shared"], lambda values: None)
    assert config.train.order == "fold"
    assert load_config(config_file(tmp_path, 'config.train.order = "shared"')).train.order == "fold"
    assert said(recwarn) == [sentence, sentence]
    assert present_settings({"train": {"order": "shared", "seed": 1}})["train"] == {"order": "fold", "seed": 1}


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("how", ["config.{0}.{1} = {2!r}", "config.{0}.update({{{1!r}: {2!r}}})"])
def test_an_old_name_in_a_config_file(old, how, tmp_path, recwarn):
    path = config_file(tmp_path, how.format(*old.split("."), VALUES[old]))
    config = load_config(path)
    assert settings_of(config, RENAMED[old]) == VALUES[old]
    assert old.split(".")[1] not in config[old.split(".")[0]]
    assert said(recwarn) == [f"{old} is now {RENAMED[old]}"]


def test_an_old_name_in_the_demo_part_of_a_config_file(tmp_path, recwarn):
    path = config_file(tmp_path, 'config.demo = ConfigDict({"train": {"select": "last", "patience": 0}})')
    config, _, changed = parse([f"--config={path}"], lambda values: None)
    assert config.train.monitor == "last"
    assert "train.monitor = last instead of val_loss" in changed
    assert said(recwarn) == ["demo.train.select is now demo.train.monitor"]
    config, _, _ = parse([f"--config={path}", "--config.demo.train.select=val_auc"], lambda values: None)
    assert config.demo.train.monitor == "val_auc"


def test_a_file_may_give_an_old_name_what_the_file_that_it_starts_from_gave_the_present_one(tmp_path):
    path = config_file(tmp_path, 'config.train.select = "val_loss"', base='start_from("configs/rrt.py")')
    assert load_config(path).train.monitor == "val_loss"  # val_auc in configs/rrt.py


ONE = "are one setting, which is now called train.monitor: give it once"


def test_two_values_under_both_names_are_refused(tmp_path, capsys):
    both = ["--config.train.select=last", "--config.train.monitor=val_auc"]
    ended = run(train.main, ["--config=configs/abmil.py", *both], capsys)
    assert (ended.code, ended.err) == (2, f"error: train.select=last and train.monitor=val_auc {ONE}\n")
    path = config_file(tmp_path, 'config.train.select = "last"', 'config.train.monitor = "val_auc"')
    ended = run(train.main, [f"--config={path}"], capsys)
    assert (ended.code, ended.err) == (
        2,
        f"error: --config={path}: train.select=last and train.monitor=val_auc {ONE}\n",
    )
    ended = run(
        evaluate.main,
        ["--run=x", "--features=y", "--config.data.stream_gib=1", "--config.data.prefetch_gib=2"],
        capsys,
    )
    assert ended.code == 2
    assert "data.stream_gib=1 and data.prefetch_gib=2 are one setting" in ended.err
    same = ["--config.train.select=val_auc", "--config.train.monitor=val_auc"]
    assert parse(["--config=configs/abmil.py", *same], lambda values: None)[0].train.monitor == "val_auc"


def test_a_wrong_type_under_an_old_name_is_refused_in_a_sentence(tmp_path, capsys):
    path = config_file(tmp_path, "config.train.select = 3")
    ended = run(train.main, [f"--config={path}"], capsys)
    assert ended.code == 2
    assert "train.monitor=3 must be text" in ended.err


def test_an_old_name_in_a_sweep(capsys):
    small = ["--config=configs/abmil.py", "--config.train.epochs=1", "--check"]
    ended = run(sweep.main, [*small, "--sweep", "train.bags_at_a_time=0,1"], capsys)
    assert ended.code == 0, ended.err
    assert "train.bags_at_a_time is now train.microbatch_size\n" in ended.out
    assert "sweep of train.microbatch_size: 2 settings" in ended.out
    ended = run(sweep.main, [*small, "--sweep", "train.select=last,val_auc"], capsys)
    assert ended.code == 2
    assert "--sweep train.monitor cannot be" in ended.err


def test_an_old_name_in_a_benchmark_file_gives_way_to_what_the_user_sets(recwarn):
    benchmark = Benchmark("own", {"ABMIL": Method("configs/abmil.py", {"train.select": "last"})}, {"clean": Protocol()})
    (one,) = runs(benchmark, [Task()], ["ABMIL"], "clean", ["--config.train.monitor=val_auc"], Path("runs"))
    assert said(recwarn) == ["train.select is now train.monitor"]
    assert parse(list(one.arguments), lambda values: None)[0].train.monitor == "val_auc"


def test_the_settings_of_an_old_run_folder_come_under_their_present_names():
    nested: dict = {"name": "own", "demo": {"train": {"select": "last"}}, "sweep": ["train.balanced=true,false"]}
    for old, value in VALUES.items():
        group, field = old.split(".")
        nested.setdefault(group, {"other": 1})[field] = value
    before = json.dumps(nested)
    present = present_settings(nested)
    assert json.dumps(nested) == before
    assert present["demo"] == {"train": {"monitor": "last"}}
    assert present["sweep"] == ["train.balanced_sampling=true,false"]
    for old, value in VALUES.items():
        group, field = old.split(".")
        assert settings_of(present, RENAMED[old]) == value
        assert field not in present[group]
        assert present[group]["other"] == 1
    assert present_settings(present) == present


def test_a_name_that_never_was_is_refused_as_before():
    with pytest.raises(ConfigError, match=r"train\.selects is not a setting; did you mean"):
        parse(["--config=configs/abmil.py", "--config.train.selects=last"], lambda values: None)
