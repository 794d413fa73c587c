"""Tries settings: `python -m mil_jax.sweep --config configs/abmil.py --sweep optimizer.lr=1e-4,3e-4`.

Settings that are numbers are trained side by side in one program; each combination of the others is a group with a folder of its own
below the sweep's, and groups are trained sequentially. Each fold takes the setting with the best score on its own validation part, and
only that one is tested: the test parts choose nothing, and no figure here tempts anybody to let them.
"""

from __future__ import annotations

from absl import flags

from mil_jax.cli.arguments import define_flags as define_train_flags
from mil_jax.cli.arguments import show_config
from mil_jax.cli.console import run_command, say
from mil_jax.config import help_text, parse
from mil_jax.errors import ConfigError

ABOUT = """Tries settings, chooses by validation (each fold for itself), and tests the chosen ones.

usage: python -m mil_jax.sweep --config FILE --sweep SETTING=VALUE,VALUE [--sweep ...] [--random N] [--config.SETTING=VALUE ...]

examples:
  python -m mil_jax.sweep --config configs/abmil.py --sweep optimizer.lr=1e-3,3e-3 --sweep aggregator.dropout=0,0.25
  python -m mil_jax.sweep --config configs/abmil.py --random 20 --sweep optimizer.lr=1e-5:1e-3:log \\
      --sweep optimizer.weight_decay=1e-6:1e-2:log --sweep aggregator.feature_dim=256,512 \\
      --config.data.features=FEATURES --config.data.labels=labels.csv --config.data.target=subtype"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    define_train_flags(values)
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "a setting and its values, NAME=VALUE,VALUE; may be given several times. With --random also a range, "
        "NAME=LOW:HIGH or NAME=LOW:HIGH:log",
        flag_values=values,
    )
    flags.DEFINE_integer("random", 0, "draw so many settings instead of trying the whole grid", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    help_asked_for = help_text(arguments, define_flags, ABOUT)
    if help_asked_for:
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    if show_config(config, values):
        return 0
    if config.distributed.coordinator:
        raise ConfigError(
            "a sweep runs in one process, on all devices of its machine: leave distributed.coordinator out"
        )
    if config.train.monitor == "last":
        raise ConfigError("train.monitor=last leaves no score to choose settings by: set it to val_loss")
    # Late: JAX takes a second, and what is wrong with a command line is said before.
    from mil_jax.commands import sweeping

    return sweeping.run(config, values, demo)


if __name__ == "__main__":
    run_command(main)
