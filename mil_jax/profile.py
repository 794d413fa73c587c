"""Says what an experiment costs before it is trained: `python -m mil_jax.profile --config configs/abmil.py`.

The programs of the experiment are compiled, analysed and timed by the engine on invented features; the order of the bags is the
real one. Nothing is trained and no run folder is made: the result is the terminal's tables and `profile.json`.
"""

from __future__ import annotations

from absl import flags

from mil_jax.cli.console import run_command, say
from mil_jax.config import help_text, parse

ABOUT = """Says what an experiment costs before it is trained: plan, compilation, steps, memory, where the time will go, and why.

usage: python -m mil_jax.profile --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  python -m mil_jax.profile --config configs/abmil.py
  python -m mil_jax.profile --config configs/transmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype
  python -m mil_jax.profile --config configs/abmil.py --config.data.synthetic.bags=100000 --config.data.synthetic.mean_size=8000"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_string(
        "trace", "", "write a trace of a few steps of each bucket for JAX's profiler here", flag_values=values
    )
    flags.DEFINE_float(
        "seconds", 1.0, "measure each bucket for about so long, or a single step", 0.0, 600.0, flag_values=values
    )
    flags.DEFINE_bool("strict", False, "make every exclusion of a slide or label an error", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    help_asked_for = help_text(arguments, define_flags, ABOUT)
    if help_asked_for:
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    # Late: JAX takes a second, and what is wrong with a command line is said before.
    from mil_jax.commands import profiling

    return profiling.run(config, values, demo)


if __name__ == "__main__":
    run_command(main)
