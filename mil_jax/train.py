"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

from mil_jax.cli.arguments import define_flags, show_config, train_flags
from mil_jax.cli.console import console, run_command, say
from mil_jax.config import help_text, parse

ABOUT = """Trains and cross-validates an aggregator; everything that comes of it is in one run folder.

usage: mil-jax train --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  mil-jax train --config abmil
  mil-jax train --config abmil --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  mil-jax train --config abmil ... --check"""

WRITTEN = ("summary.md", "predictions.csv", "figures/", "checkpoints/")


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if help_asked_for := help_text(arguments, define_flags, ABOUT):
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    if show_config(config, values):
        return 0
    from mil_jax import api  # late: JAX takes a second, and what is wrong with a command line is said before
    from mil_jax.engine.callbacks import TrainingInterrupted
    from mil_jax.reports.run.write import console_report

    try:
        run = api.fit_config(config, train_flags(values), demo)
    except TrainingInterrupted as stopped:
        say(f"Stopped; the state is saved. Resume it with --resume --config.run={config.run or f'runs/{config.name}'}")
        return stopped.exit_code
    if run is not None and not console.quiet:
        console.print(console_report(run.summary), soft_wrap=False)
        written = [name for name in WRITTEN if (run.path / name).exists()]
        say(f"Everything is in {run.path}: {', '.join(written)}.")
    return 0


if __name__ == "__main__":
    run_command(main)
