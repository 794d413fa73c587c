"""Joins shares of a training, `python -m mil_jax.train --runs i/n ...`, into one run: `python -m mil_jax.merge --part ... --out RUN`."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from mil_jax.cli.console import console, run_command, say
from mil_jax.errors import ConfigError

ABOUT = """Joins the shares of a training into the run folder that one training of all runs would have written.

usage: mil-jax merge --part FOLDER --part FOLDER [...] --out RUN

examples:
  mil-jax train --config abmil ... --runs 1/2 --config.run=runs/part1       (on one machine)
  mil-jax train --config abmil ... --runs 2/2 --config.run=runs/part2       (on another)
  mil-jax merge --part runs/part1 --part runs/part2 --out runs/abmil

The cohort must be where the settings of the shares say: its test parts are predicted here, and summarised. Interrupted, it goes on by
the same command.
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_multi_string("part", [], "the run folder of a share", flag_values=values)
    flags.DEFINE_string("out", "", "the run folder to be", flag_values=values)
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["mil_jax.merge", *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if values.help:
        say(ABOUT + values.get_help())
        return 0
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}; shares are given as --part FOLDER --part FOLDER")
    if not (values.part and values.out):
        raise ConfigError("name the shares and the run to be: --part FOLDER --part FOLDER --out RUN")
    from mil_jax import api  # late: JAX takes a second, and what is wrong with a command line is said before
    from mil_jax.engine.callbacks import TrainingInterrupted
    from mil_jax.reports.run.write import console_report

    try:
        run = api.merge([Path(part) for part in values.part], Path(values.out))
    except TrainingInterrupted as stopped:
        say("Stopped; the shares are joined. The same command goes on.")
        return stopped.exit_code
    console.print(console_report(run.summary), soft_wrap=False)
    say(f"Everything is in {run.path}.")
    return 0


if __name__ == "__main__":
    run_command(main)
