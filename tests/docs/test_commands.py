"""Every command of the README and the documentation can be given as it stands: its settings, flags and config files exist."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import textwrap

import pytest
from absl import flags

from mil_jax import benchmark
from mil_jax.cli.evaluate_arguments import split_arguments
from mil_jax.config import base_config, parse, require_setting
from tests.docs.pages import PAGES, ROOT, Command, blocks, commands

COMMANDS = [command for page in PAGES for command in commands(page)]
WRITTEN_BY_A_RUN = "runs/"  # configs that a sweep leaves


def flags_of(module: str) -> flags.FlagValues:
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values)
    return values


def check(command: Command) -> None:
    """Raises where a command could not be given."""
    module, arguments = command.module, [argument for argument in command.arguments if argument != "--help"]
    kind, _, name = module.partition(".")
    if kind == "mil_jax" and name in ("train", "sweep", "profile"):
        usable = ["abmil" if argument.startswith(WRITTEN_BY_A_RUN) else argument for argument in arguments]
        named = usable if any(argument.startswith("--config=") or argument == "--config" for argument in usable) else []
        parse(named or ["--config", "configs/abmil.py", *usable], importlib.import_module(module).define_flags)
    elif module == "mil_jax.benchmark":
        benchmark._read(arguments)
    elif module == "mil_jax.evaluate":
        cohorts, rest = split_arguments(arguments)
        for setting in (setting for cohort in cohorts for setting in cohort.settings):
            require_setting(base_config(), setting)
        assert flags_of(module)([module, *rest])[1:] == []
    elif module in ("mil_jax.compare", "mil_jax.merge") or kind == "data_prep":
        assert flags_of(module)([module, *arguments])[1:] == []
    else:  # a benchmark or a script, whose flags are made when it runs
        file = ROOT / (module if module.startswith("scripts/") else f"{module.replace('.', '/')}.py")
        text = file.read_text(encoding="utf-8")
        known = set(re.findall(r"(?:DEFINE_\w+|add_argument)\(\s*\"(?:--)?([\w-]+)\"", text))
        known |= {"config"} if "mil_jax.config" in text else set()
        known |= {"machine"} if "import MACHINE" in text else set()  # of `benchmarks/common.py`
        assert {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")} <= known


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 50
    assert {
        "mil_jax.train",
        "mil_jax.evaluate",
        "mil_jax.compare",
        "mil_jax.sweep",
        "mil_jax.profile",
        "mil_jax.benchmark",
    } <= {command.module for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.module}")
def test_a_command_can_be_given_as_it_stands(command):
    check(command)


@pytest.mark.parametrize(
    "wrong", ["--config.train.epoch=3", "--config.train.epochs=three", "--chek", "--config=abmill"]
)
def test_a_wrong_command_is_noticed(wrong):
    arguments = [wrong] if wrong.startswith("--config=") else ["--config=configs/abmil.py", wrong]
    with pytest.raises(Exception, match=r"epoch|chek|abmill"):
        check(Command("README.md", "mil_jax.train", arguments))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_python_imports_is_there(page):
    for block in blocks(page, "python"):
        examples = doctest.DocTestParser().get_examples(block)
        code = "".join(example.source for example in examples) or textwrap.dedent(block)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:mil_jax|data_prep|configs|scripts|tests|docs|benchmarks)/[\w./]+\.(?:py|md|sh))`", text)
    missing = [name for name in named if not (ROOT / name).is_file() and "NAME" not in name]
    assert not missing


def test_links_of_the_root_pages_lead_somewhere():
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        ROOT / "CHANGELOG.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
