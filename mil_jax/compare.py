"""Says whether one run is better than another on the same slides: `python -m mil_jax.compare --run runs/a --run runs/b`.

What is compared are the test predictions that the runs left; nothing is trained or scored again.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from mil_jax.cli.console import run_command, say
from mil_jax.errors import ConfigError

ABOUT = """Compares runs on the same slides and patients: the first run with each of the others.

usage: python -m mil_jax.compare --run [NAME=]RUN --run [NAME=]RUN [--run ...] [flags]

examples:
  python -m mil_jax.compare --run runs/abmil --run runs/transmil
  python -m mil_jax.compare --run ABMIL=runs/abmil_lung --run ABMIL=runs/abmil_kidney --run TransMIL=runs/transmil_lung \\
      --run TransMIL=runs/transmil_kidney --out runs/comparison

Runs of one NAME are one method on several tasks, which are told apart by their label columns and tables. A run may also be the results
folder of python -m mil_jax.evaluate, whose cohorts are then the tasks.
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_multi_string("run", [], "a run folder, or a results folder of evaluate", flag_values=values)
    flags.DEFINE_string(
        "out", "", "the results folder; else the folder comparison in the first run", flag_values=values
    )
    flags.DEFINE_bool("overwrite", False, "replace the results folder", flag_values=values)
    flags.DEFINE_bool(
        "mixed-protocols",
        False,
        "compare runs that chose their epochs on test parts with runs that did not",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["mil_jax.compare", *arguments])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if values.help:
        say(ABOUT + values.get_help())
        return 0
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}; runs are given as --run RUN --run RUN")
    named = _named(values.run)
    # Late: JAX takes a second, and what is wrong with a command line is said before.
    from mil_jax.commands import comparing

    mixed = bool(values["mixed-protocols"].value)
    return comparing.run(named, values.out, overwrite=values.overwrite, mixed=mixed)


def _named(runs: list[str]) -> dict[str, list[Path]]:
    """The run folders of each method, in the order of their first runs. Raises ConfigError for fewer than two methods."""
    of_name: dict[str, list[Path]] = {}
    for text in runs:
        name, _, path = text.rpartition("=")
        of_name.setdefault(name or Path(path).resolve().name, []).append(Path(path))
    if len(of_name) < 2:
        raise ConfigError(
            f"--run names {len(of_name)} method ({', '.join(of_name) or 'none'}), and a comparison needs two: --run A=FOLDER --run B=FOLDER"
        )
    return of_name


if __name__ == "__main__":
    run_command(main)
