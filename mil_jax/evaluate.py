"""Scores slides with a trained run: `python -m mil_jax.evaluate --run runs/x --features external/ --labels external.csv`.

No model scores a patient whom it was trained or validated on. Everything is in one results folder.
"""

from __future__ import annotations

from absl import flags

from mil_jax.cli.console import run_command, say
from mil_jax.cli.evaluate_arguments import split_arguments
from mil_jax.errors import ConfigError
from mil_jax.settings import FEATURE_DIFFERENCES

ABOUT = """Scores slides with the models of a trained run: external cohorts, with labels or without, or the run's own test parts again.

usage: python -m mil_jax.evaluate --run RUN --features FEATURES [--labels TABLE] [--name NAME] [--features ... ] [flags]

examples:
  python -m mil_jax.evaluate --run runs/subtype --features external/ --labels external.csv
  python -m mil_jax.evaluate --run runs/subtype --features hospital_a/ --labels a.csv --features hospital_b/ --labels b.csv \\
      --config.data.id_column=slide --by scanner,sex --out runs/subtype_external

of a cohort (repeat them for each cohort; labels, name and settings belong to the features before them):
  --features    a folder of feature files, as data.features in training
  --shards      instead: a folder of shards
  --labels      its label table; without one there are predictions only
  --instance-labels    a folder with one .npy or .csv of 0 and 1 for each slide whose tiles are labelled: AUC of tiles, FROC of lesions
  --name        what to call the cohort; else the name of its folder
  --config.data.NAME=VALUE    how its files are read, where it is not as in training, such as --config.data.id_column=slide,
                --config.data.target=diagnosis, --config.data.patient=tcga, --config.data.filter='age > 60'
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's flags but those of a cohort."""
    flags.DEFINE_string("run", "", "the run folder that training wrote", flag_values=values)
    flags.DEFINE_string("out", "", "the results folder; else RUN/evaluation", flag_values=values)
    flags.DEFINE_list(
        "by", [], "columns of the label tables to give subgroups of: site,sex,scanner", flag_values=values
    )
    flags.DEFINE_bool(
        "exclude-seen",
        False,
        "leave out patients whom every model has met in training or validation, instead of refusing the cohort",
        flag_values=values,
    )
    flags.DEFINE_multi_enum(
        "accept", [], FEATURE_DIFFERENCES, "score features that differ from the run's in this", flag_values=values
    )
    flags.DEFINE_bool("overwrite", False, "replace the results folder", flag_values=values)
    flags.DEFINE_bool("strict", False, "make every exclusion of a slide or label an error", flag_values=values)
    flags.DEFINE_bool("help", False, "show this", short_name="h", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"--help", "-h", "-help"} & set(arguments):
        values = flags.FlagValues()
        define_flags(values)
        say(ABOUT + values.get_help())
        return 0
    options, rest = split_arguments(arguments)
    values = flags.FlagValues()
    define_flags(values)
    try:
        unparsed = values(["mil_jax.evaluate", *rest])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if unparsed:
        raise ConfigError(f"unexpected argument {unparsed[0]!r}; options are given as --name=value")
    if not values.run:
        raise ConfigError("--run is missing: name the run folder that training wrote; --help shows an example")
    names = [one.name for one in options]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two cohorts are called {twice[0]}; give each a --name of its own, behind its --features")
    # Late: JAX takes a second, and what is wrong with a command line is said before.
    from mil_jax.commands import evaluating

    return evaluating.run(options, values)


if __name__ == "__main__":
    run_command(main)
