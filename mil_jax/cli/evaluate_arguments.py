"""The flags of `mil_jax.evaluate` that name a cohort, and how they are split over several cohorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mil_jax.errors import ConfigError
from mil_jax.inference.options import Options
from mil_jax.setting_names import present_name

WHERE = ("features", "shards")
OF_A_COHORT = (*WHERE, "labels", "name", "instance-labels")


def split_arguments(arguments: Sequence[str]) -> tuple[list[Options], list[str]]:
    """The cohorts of a command line, and its other arguments. Labels, names and settings are those of the features before them;
    settings before all features hold for all cohorts.

    Raises ConfigError where it is not clear whose they are.
    """
    found: list[dict[str, str]] = [{}]  # the first: before all features
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not (name in OF_A_COHORT or name.startswith("config.")):
            rest.append(argument)
            continue
        if not equals:
            value = next(waiting, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"--{name} has no value; write --{name}=VALUE")
        if name in WHERE:
            found.append({})
        elif name in found[-1]:
            raise ConfigError(f"--{name} is given twice for one cohort; each --{name} stands behind its --features")
        found[-1][name] = value
    common, cohorts = found[0], found[1:]
    if not cohorts:
        raise ConfigError("--features (or --shards) is missing: name the folder of the slides to score")
    misplaced = [name for name in common if name in OF_A_COHORT]
    if misplaced and len(cohorts) > 1:
        raise ConfigError(
            f"--{misplaced[0]} stands before all --features, and there are {len(cohorts)} cohorts; put it behind the --features it "
            "belongs to"
        )
    return [_options(common | one) for one in cohorts], rest


def _options(given: Mapping[str, str]) -> Options:
    source = next(name for name in WHERE if name in given)
    settings = {name.removeprefix("config."): value for name, value in given.items() if name.startswith("config.")}
    settings = {present_name(name, settings): value for name, value in settings.items()}
    name = given.get("name") or Path(given[source]).resolve().name
    instances = given.get("instance-labels", "")
    return Options(source, given[source], given.get("labels", ""), name, instances, settings)
