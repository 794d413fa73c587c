"""The flags of the training commands that are no settings; settings are `--config.*`."""

from __future__ import annotations

import re
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from mil_jax.cli.console import say
from mil_jax.config import default_settings
from mil_jax.errors import ConfigError
from mil_jax.setting_sources import flat, sources


class TrainFlags(NamedTuple):
    """check: stop before training. resume: the run that is in the run folder. overwrite: move it aside. strict: no slide or label may
    be excluded. share: (i, n), train the i-th of n shares of the runs.
    """

    check: bool = False
    resume: bool = False
    overwrite: bool = False
    strict: bool = False
    share: tuple[int, int] = (1, 1)


def parse_share(flag: str, text: str) -> tuple[int, int]:
    """`3/10`, the third of ten jobs -> (3, 10); empty -> (1, 1). Raises ConfigError for anything else. flag: how the option is called."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text or "1/1", re.ASCII)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"{flag}={text} must be i/n with i from 1 to n: 1/10, 2/10, ... 10/10")
    return number, count


def define_flags(values: flags.FlagValues) -> None:
    """The flags of `TrainFlags`, and --show-config."""
    flags.DEFINE_bool(
        "check",
        False,
        "stop before training: show what matched, what was excluded, leaks, the plan",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "show-config",
        False,
        "list the settings that differ from their defaults, and whether a config file, its demo part or the command line says so, "
        "and stop; with --check, before the check",
        flag_values=values,
    )
    flags.DEFINE_bool("resume", False, "resume the run that is in the run folder", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "move the run that is in the run folder aside (PATH.old)", flag_values=values)
    flags.DEFINE_bool("strict", False, "make every exclusion of a slide or label an error", flag_values=values)


def train_flags(values: flags.FlagValues) -> TrainFlags:
    """What the command line says of them."""
    return TrainFlags(values.check, values.resume, values.overwrite, values.strict)


def show_config(config: ConfigDict, values: flags.FlagValues) -> bool:
    """Shows where the settings come from, if asked to; returns whether the command is to end with it."""
    if not values["show-config"].value:
        return False
    say("Settings that differ from their defaults:")
    for line in source_lines(config):
        say(f"  {line}")
    return not values.check


def source_lines(config: ConfigDict) -> list[str]:
    """The settings that differ from their defaults, and where each value comes from, in columns."""
    defaults, values = default_settings(config), flat(config)
    rows = [("setting", "value", "default", "from")]
    rows += [
        (name, str(values[name]), str(defaults.get(name, "")), source)
        for name, source in sources(config, defaults).items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
