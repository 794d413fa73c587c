"""`mil-jax NAME ...` is `python -m mil_jax.NAME ...`; alone it lists the commands."""

from __future__ import annotations

import difflib
import importlib

from mil_jax.cli.console import run_command, say
from mil_jax.errors import ConfigError

COMMANDS = {
    "train": "train and cross-validate an aggregator on slides",
    "merge": "join shares of a training that several machines did",
    "evaluate": "score other slides with a trained run",
    "compare": "compare runs on the same slides",
    "sweep": "try settings, chosen by validation",
    "benchmark": "train several methods on several tasks, for one table",
    "profile": "say what a training will take, before it",
}
ABOUT = """Multiple-instance learning on whole slide images.

usage: mil-jax COMMAND [arguments]      (the same as python -m mil_jax.COMMAND)

examples:
  mil-jax train --config abmil
  mil-jax train --help

commands:"""
DATA_PREPARATION = """
Slides to features: python -m data_prep.tile, encode, shard, inspect, demo_slides, each with --help."""


def main(arguments: list[str]) -> int:
    """Runs the command that the first argument names; returns its exit code."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-help", "-h", "help"):
        say("\n".join([ABOUT, *(f"  {command:<12}{about}" for command, about in COMMANDS.items()), DATA_PREPARATION]))
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(COMMANDS)}"
        raise ConfigError(f"{name!r} is no command; {advice}")
    code: int = importlib.import_module(f"mil_jax.{name}").main(rest)
    return code


def run() -> None:
    """The console script."""
    run_command(main)


if __name__ == "__main__":
    run()
