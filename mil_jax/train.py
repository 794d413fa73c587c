"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program, or a share of them (`--runs i/n`; `mil_jax.merge` joins shares). Without
`data.features` or `data.shards` the embedded digits cohort is used, with the `demo` part of the config.
"""

from __future__ import annotations

from absl import flags

from mil_jax.cli import arguments as common
from mil_jax.cli.console import console, run_command, say
from mil_jax.config import help_text, parse
from mil_jax.errors import ConfigError

ABOUT = """Trains and cross-validates an aggregator; everything that comes of it is in one run folder.

usage: mil-jax train --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  mil-jax train --config abmil
  mil-jax train --config abmil --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  mil-jax train --config abmil ... --check"""

ENGINES = "local", "ray"
WRITTEN = ("summary.md", "predictions.csv", "figures/", "checkpoints/")


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags."""
    common.define_flags(values)
    flags.DEFINE_string(
        "runs",
        "",
        "i/n: train only the i-th of n shares of the runs, for job arrays; mil-jax merge joins them",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "engine",
        ENGINES[0],
        ENGINES,
        "ray: shares of the runs on a Ray cluster, whose machines all see the cohort and the run folder (extra `ray`)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray-address",
        "",
        "with --engine ray: address of the cluster; empty: this machine",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers",
        0,
        "with --engine ray: shares of the runs, each on a worker of its own; 0: as many as GPUs, or machines",
        lower_bound=0,
        flag_values=values,
    )


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if help_asked_for := help_text(arguments, define_flags, ABOUT):
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    if common.show_config(config, values):
        return 0
    from mil_jax import api  # late: JAX takes a second, and what is wrong with a command line is said before
    from mil_jax.engine.callbacks import TrainingInterrupted
    from mil_jax.reports.run.write import console_report

    try:
        how = common.train_flags(values)._replace(share=common.parse_share("--runs", values.runs))
        if values.engine == ENGINES[1] and not how.check:
            from mil_jax.ray_training import fit_on_ray

            if how.share != (1, 1):
                raise ConfigError("--engine=ray deals out the shares itself: leave --runs out")
            run: api.Run | None = fit_on_ray(config, how, values.workers, str(values["ray-address"].value))
        else:
            run = api.fit_config(config, how, demo)
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
