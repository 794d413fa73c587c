"""Config files: one may start from another, and a command says where each value comes from."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mil_jax import sweep, train
from mil_jax.config import base_config, load_config, parse, start_from
from mil_jax.errors import ConfigError
from mil_jax.experiment.prepare import prepare
from tests.commands import run

CONFIGS = Path(__file__).parent.parent / "configs"
OWN = """from mil_jax.config import ConfigDict, start_from


def get_config():
    config = start_from("configs/recipes/rrt_c16_plip.py")
    config.train.patience = 7
    config.demo.train.epochs = 3
    return config
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def columns(out: str) -> dict[str, list[str]]:
    """Of each setting shown: value, default, source."""
    lines = out.split("Settings that differ from their defaults:\n")[1].splitlines()
    starts = [lines[0].index(title) for title in ("value", "default", "from")]
    cells = {}
    for line in lines[1:]:
        if line.startswith("  "):
            ends = [*starts[1:], None]
            cells[line[: starts[0]].strip()] = [line[start:end].strip() for start, end in zip(starts, ends)]
    return cells


def test_a_file_that_starts_from_another_has_its_settings_its_demo_and_a_name_of_its_own(own):
    base, config = load_config(CONFIGS / "recipes" / "rrt_c16_plip.py"), load_config(own)
    assert (base.name, config.name) == ("rrt_c16_plip", "own")
    expected = base.to_dict()
    expected["name"], expected["train"]["patience"], expected["demo"]["train"]["epochs"] = "own", 7, 3
    assert config.to_dict() == expected
    assert load_config(CONFIGS / "recipes" / "rrt_c16_plip.py").to_dict() == base.to_dict()


def test_a_file_that_starts_from_one_that_there_is_not_is_refused(own, capsys):
    own.write_text(OWN.replace("rrt_c16_plip", "rrt_c16_plib"))
    ended = run(train.main, [f"--config={own}"], capsys)
    assert ended.code == 2
    assert "there is no such file; did you mean configs/recipes/rrt_c16_plip.py?" in ended.err
    with pytest.raises(ConfigError, match="defines no get_config"):
        start_from("configs/benchmarks/usual.py")


def test_the_source_of_each_value_is_shown(own, capsys):
    arguments = [f"--config={own}", "--config.optimizer.lr=0.5", "--config.train.seed=0"]
    ended = run(train.main, [*arguments, "--show-config"], capsys)
    assert ended.code == 0
    shown = columns(ended.out)
    recipe, base = "configs/recipes/rrt_c16_plip.py", "configs/rrt.py"
    assert shown["name"] == ["own", "", str(own)]
    assert shown["aggregator.shortcut"] == ["True", "False", base]
    assert "splits.repeats" not in shown  # 3 in the recipe, 1 in its demo part and by default
    assert shown["train.epochs"] == ["3", "50", f"demo part of {own}"]
    assert shown["aggregator.feature_dim"] == ["64", "512", f"demo part of {base}"]
    assert shown["optimizer.lr"] == ["0.5", "0.0002", "command line"]
    assert "train.seed" not in shown  # 2021 in the recipe, set back to the default
    assert "train.patience" not in shown  # 7 in the file, 0 in the demo part and by default
    assert "optimizer.b1" not in shown
    with_data = run(train.main, [*arguments, "--show-config", "--config.data.features=F"], capsys)
    shown = columns(with_data.out)
    assert shown["train.patience"] == ["7", "0", str(own)]
    assert shown["splits.repeats"] == ["3", "1", recipe]
    assert shown["aggregator.epeg_kernel"] == ["9", "15", recipe]
    assert shown["data.features"] == ["F", "", "command line"]


def test_what_is_shown_is_all_that_differs_from_the_defaults(capsys):
    ended = run(train.main, ["--config=configs/abmil_ilse.py", "--config.data.features=F", "--show-config"], capsys)
    config = load_config(CONFIGS / "abmil_ilse.py")
    default = base_config()
    differing = {
        f"{group}.{name}"
        for group in ("task", "splits", "optimizer", "train")
        for name, value in config[group].items()
        if value != default[group][name]
    }
    assert {
        name for name in columns(ended.out) if name.split(".")[0] in ("task", "splits", "optimizer", "train")
    } == differing


@pytest.mark.parametrize("command", [train, sweep])
def test_the_help_says_how_to_see_them_and_with_check_the_check_follows(command, capsys, tmp_path):
    assert "--show-config" in run(command.main, ["--help"], capsys).out
    arguments = ["--config=configs/mean_pooling.py", "--show-config", f"--config.data.cache={tmp_path}"]
    asked = ["--sweep", "optimizer.lr=0.1,0.2"] if command is sweep else []
    ended = run(command.main, [*arguments, *asked], capsys)
    assert (ended.code, "600 bags" in ended.out) == (0, False)
    ended = run(command.main, [*arguments, *asked, "--check"], capsys)
    assert (ended.code, "600 bags" in ended.out) == (0, True)
    assert ended.out.index("Settings that differ") < ended.out.index("600 bags")


RESULT = re.compile(
    r"^Without data: (?:as (?P<base>configs/[\w/]+\.py)\.|"
    r"(?:AUC|Pearson r|C-index|quadratic kappa) \d\.\d{3} on the embedded digits \(\d+ folds\), "
    r"\d+ minutes? on 2 CPU cores \([A-Z][a-z]+ 20\d\d\)\.)$",
    re.MULTILINE,
)


every_config = pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob("*.py")) if path.parent.name != "benchmarks"],
    ids=lambda path: path.stem,
)


@every_config
def test_every_config_prepares_a_run_without_data(path):
    experiment = prepare(parse([f"--config={path}"], lambda values: None)[0])
    assert len(experiment.cohort.bags) in (599, 600)  # a multilabel bag may lack all labels
    assert len(experiment.targets[0].splits.parts) == 5


@every_config
def test_a_config_says_what_it_gives_without_data_and_how_long_that_takes(path):
    about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    said = RESULT.findall(about)
    assert len(said) == about.count("Without data: ") == 1
    if said[0]:
        base, own = (load_config(one) for one in (CONFIGS.parent / said[0], path))
        own.name = base.name
        assert own.to_dict() == base.to_dict()
