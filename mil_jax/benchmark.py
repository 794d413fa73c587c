"""Trains several methods on one or several tasks and ends in one table: `python -m mil_jax.benchmark --config configs/benchmarks/usual.py`.

Each method on each task is a run of `python -m mil_jax.train` with a run folder of its own, below that of the benchmark. A run that has
ended is not trained again, one that was stopped goes on, and settings and data that are not those of a run are refused.
"""

from __future__ import annotations

from absl import flags

from mil_jax import train
from mil_jax.cli.benchmark_plan import Benchmark
from mil_jax.cli.console import run_command, say
from mil_jax.config import find_config, help_text, run_file, split_off_config
from mil_jax.errors import ConfigError
from mil_jax.setting_names import present_arguments

ABOUT = """Trains methods x tasks x folds, resumes what was stopped, and ends in one table.

usage: python -m mil_jax.benchmark --config FILE [--methods A,B] [--tasks X,Y] [--protocol P] [--out FOLDER] [--config.SETTING=VALUE ...]

examples:
  python -m mil_jax.benchmark --config configs/benchmarks/usual.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --out runs/benchmark
  python -m mil_jax.benchmark --config configs/benchmarks/pathgene.py --tables TABLES --config.data.features=FEATURES \\
      --methods ABMIL,TransMIL --tasks EGFR_2,TP53_3 --protocol clean

FILE defines the methods, each by a config of its own. --config.SETTING=VALUE changes a setting of all runs. The same command once more goes
on with what was stopped; with other methods or tasks and the same --out it trains what is missing. The table is of those asked for."""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_list(
        "methods",
        [],
        "the methods, by their names in FILE or those of their configs (abmil,clam_sb); else all",
        flag_values=values,
    )
    flags.DEFINE_list("tasks", [], "the label tables, by name; else all in --tables", flag_values=values)
    flags.DEFINE_string("tables", "", "of a benchmark with its own label tables: their folder", flag_values=values)
    flags.DEFINE_string("protocol", "clean", "one of those in FILE", flag_values=values)
    flags.DEFINE_string("out", "", "the folder of everything; else runs/NAME_PROTOCOL", flag_values=values)
    flags.DEFINE_bool(
        "check",
        False,
        "stop before training: show methods and tasks, with all data joined and checked",
        flag_values=values,
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
        say(str(help_text(["--help"], define_flags, ABOUT)))
        return 0
    benchmark, values, changed = _read(arguments)
    # Late: JAX takes a second, and what is wrong with a command line is said before.
    from mil_jax.commands import benchmarking

    return benchmarking.run(benchmark, values, changed, train.main)


def _read(arguments: list[str]) -> tuple[Benchmark, flags.FlagValues, list[str]]:
    """The benchmark file, the command's flags, and the settings that the user changes in all runs."""
    named, rest = split_off_config(arguments)
    if not named:
        raise ConfigError("--config is missing: name a benchmark file, such as --config configs/benchmarks/usual.py")
    benchmark = run_file(find_config(named), "get_benchmark")
    if not isinstance(benchmark, Benchmark):
        raise ConfigError(f"--config={named}: get_benchmark() must return a Benchmark")
    rest = present_arguments(rest)
    changed = [argument for argument in rest if argument.startswith("--config.")]
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["mil_jax.benchmark", *(one for one in rest if one not in changed)])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if unparsed:
        raise ConfigError(f"{unparsed[0]!r} is no option; methods are given as --methods A,B")
    return benchmark, values, changed


if __name__ == "__main__":
    run_command(main)
