"""Names that settings and their values had in earlier versions: on the command line, in config files and in run folders they still work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mil_jax.errors import ConfigError, RenamedSetting
from mil_jax.settings import RENAMED, RENAMED_VALUES

_ASSIGNMENT = re.compile(r"(?P<before>-{0,2}config\.)(?P<name>[\w.]+)=(?P<value>.*)", re.DOTALL)


def present_name(name: str, given: Mapping[str, Any]) -> str:
    """The present name of one of the settings that are `given`, by name; an old name is said to the user.

    Raises ConfigError where the old and the present name are given different values.
    """
    setting = name.removeprefix("demo.")
    present = name.removesuffix(setting) + RENAMED.get(setting, setting)
    if present != name:
        if given.get(present, given[name]) != given[name]:
            raise ConfigError(
                f"{name}={given[name]} and {present}={given[present]} are one setting, which is now called {present}: "
                "give it once"
            )
        warnings.warn(f"{name} is now {present}", RenamedSetting, stacklevel=2)
    return present


def present_value(name: str, value: Any) -> Any:
    """The present word for the value of a setting, by its present name; an old one is said to the user."""
    present = RENAMED_VALUES.get(name.removeprefix("demo."), {}).get(str(value), value)
    if present != value:
        warnings.warn(f"{name}={value} is now {name}={present}", RenamedSetting, stacklevel=2)
    return present


def present_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments with each `--config.NAME=VALUE` under its present name and value; others as they are."""
    matched = [_ASSIGNMENT.fullmatch(argument) for argument in arguments]
    given = {match["name"]: match["value"] for match in matched if match}
    present = []
    for argument, match in zip(arguments, matched):
        if match:
            name = present_name(match["name"], given)
            argument = f"{match['before']}{name}={present_value(name, match['value'])}"
        present.append(argument)
    return present


def rename_old(config: ConfigDict, before: Mapping[str, Any]) -> None:
    """Gives what a config file set by old names to the present ones, in place. before: the values that the file started from."""
    for old, new in RENAMED.items():
        for part in ("", "demo."):
            *groups, name = f"{part}{old}".split(".")
            group = config
            for key in groups:
                group = group.get(key, ConfigDict())
            if name not in group:
                continue
            given, last = {f"{part}{old}": group[name]}, new.split(".")[-1]
            if last in group and group[last] != before.get(f"{part}{new}"):
                given[f"{part}{new}"] = group[last]
            present_name(f"{part}{old}", given)
            with group.ignore_type():  # a wrong type is said later, as of any setting
                group[last] = group[name]
            del group[name]
    for name in RENAMED_VALUES:
        for part in ("", "demo."):
            *groups, last = f"{part}{name}".split(".")
            group = config
            for key in groups:
                group = group.get(key, ConfigDict())
            if last in group:
                group[last] = present_value(f"{part}{name}", group[last])
