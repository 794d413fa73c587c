"""From `--sweep NAME=V1,V2` to the settings that are tried: the grid or a random draw, in groups of one program each.

Settings that are numbers inside the program (rates, weights) differ between the runs of a group; any other makes a group of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mil_jax.config import ConfigDict, require_setting, set_value, value_from_text
from mil_jax.engine.plan import Overrides
from mil_jax.errors import ConfigError
from mil_jax.experiment.make_plan import numeric_names
from mil_jax.settings import check_value

Point = dict[str, Any]
_TRIES = 100

_OTHER_COHORT = "changes the cohort, and the scores of two cohorts cannot be compared"
_REFUSED = {
    "name": "names the run",
    "run": "names the run folder",
    "aggregator.name": "needs a config of its own for each method",
    "reembed.name": "needs a config of its own for each method",
    "strategy.name": "needs a config of its own for each method",
    "task.name": _OTHER_COHORT,
    "task.joint": _OTHER_COHORT,
    "task.transform": _OTHER_COHORT,
    "task.loss_name": "changes the validation loss by which settings are compared",
    "train.monitor": "says by which score settings are compared",
    "train.protocol": "says whether there is a validation part to compare settings by",
    "train.permute_labels": "is a control, not a way to train",
    "train.seed": "is luck, and choosing the luckiest seed would overstate the result; use train.num_seeds",
    "train.num_seeds": "changes how sure a score is, not the score",
}
_NO_RESULT = (
    *("checkpoint_seconds", "steps_per_dispatch", "replica_axis", "matmul_precision", "tensorboard", "wandb"),
    *("data_parallel", "instance_parallel", "memory_gib", "debug_nans"),
)
_REFUSED |= {f"train.{name}": "changes no result" for name in _NO_RESULT}
_REFUSED |= {f"distributed.{name}": "changes no result" for name in ("coordinator", "num_processes", "process_id")}
_ALLOWED = ("data.normalize",)


@dataclass(frozen=True)
class Axis:
    """One setting: the values to try, or for a random search the ends of a range, drawn from evenly or by logarithm."""

    name: str
    values: tuple[Any, ...] = ()
    ends: tuple[float, float] | None = None
    log: bool = False

    def draw(self, rng: np.random.Generator, whole: bool) -> Any:
        """One value; `whole`: a whole number."""
        if self.ends is None:
            return self.values[rng.integers(len(self.values))]
        low, high = self.ends
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return round(drawn) if whole else float(f"{drawn:.3g}")


@dataclass(frozen=True)
class Group:
    """Points of one program. config: the settings that they share. numbers: of its points among all. overrides: of each."""

    name: str
    config: ConfigDict
    numbers: tuple[int, ...]
    overrides: tuple[Overrides, ...]


def read_axes(texts: Sequence[str], config: ConfigDict, *, random: int) -> list[Axis]:
    """The settings that `--sweep` names. random: the points to draw, 0 for the grid. Raises ConfigError for what cannot be swept."""
    if not texts:
        raise ConfigError("--sweep is missing: name a setting and its values, such as --sweep optimizer.lr=1e-4,3e-4")
    if random < 0:
        raise ConfigError(f"--random={random} must be at least 2 settings to draw, or left out for the whole grid")
    axes: list[Axis] = []
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--config.").removeprefix("config.")
        if not equals:
            raise ConfigError(f"--sweep {text} has no values; write --sweep {name or 'NAME'}=VALUE,VALUE")
        require_setting(config, name, "--sweep ")
        group = name.split(".")[0]
        reason = _REFUSED.get(name) or (
            _OTHER_COHORT if group in ("data", "splits", "demo") and name not in _ALLOWED else ""
        )
        if reason:
            raise ConfigError(f"--sweep {name} cannot be: the setting {reason}")
        if name in [axis.name for axis in axes]:
            raise ConfigError(f"--sweep {name} is given twice; name all its values in one: --sweep {name}=VALUE,VALUE")
        axes.append(_axis(config, name, values, random))
    if not random and math.prod(len(axis.values) for axis in axes) < 2:
        raise ConfigError("--sweep names one value only; give several with commas, or train with it: mil_jax.train")
    return axes


def draw_points(axes: Sequence[Axis], config: ConfigDict, random: int) -> list[Point]:
    """All points of the grid in order, or `random` different ones, drawn with splits.seed."""
    names = [axis.name for axis in axes]
    rng = np.random.default_rng([config.splits.seed, 3])
    if not any(axis.ends for axis in axes):
        grid = [dict(zip(names, values)) for values in itertools.product(*(axis.values for axis in axes))]
        if not random:
            return grid
        if random > len(grid):
            raise ConfigError(
                f"--random={random}: the grid has {len(grid)} settings; leave --random out to try them all"
            )
        return [grid[number] for number in sorted(rng.choice(len(grid), random, replace=False))]
    whole = {name: type(get_value(config, name)) is int for name in names}
    points: list[Point] = []
    for _ in range(random * _TRIES):
        point = {axis.name: axis.draw(rng, whole[axis.name]) for axis in axes}
        if point not in points:
            points.append(point)
        if len(points) == random:
            return points
    raise ConfigError(f"--random={random}: the ranges hold only {len(points)} different settings; draw fewer")


def grouped(points: Sequence[Point], config: ConfigDict) -> list[Group]:
    """The groups, in the order of their first points; `config`: the settings that no point changes."""
    members: dict[tuple[tuple[str, Any], ...], list[tuple[int, Overrides]]] = {}
    for number, point in enumerate(points):
        numeric = numeric_names(with_point(config, point))
        shape = tuple((name, value) for name, value in point.items() if name not in numeric)
        overrides = tuple((name, float(value)) for name, value in point.items() if name in numeric)
        members.setdefault(shape, []).append((number, overrides))
    groups = []
    for shape, of_shape in members.items():
        numbers, overrides_of = zip(*of_shape)
        own = [with_point(config, points[number]) for number in numbers]
        base = own[0]
        base.train.sample_instances = max(
            one.train.sample_instances for one in own
        )  # runs of one program have one shape
        groups.append(Group(shown(dict(shape)), base, numbers, overrides_of))
    return groups


def with_point(config: ConfigDict, point: Point) -> ConfigDict:
    """A copy of the config with the values of a point."""
    config = ConfigDict(config.to_dict())
    for name, value in point.items():
        set_value(config, name, value)
    return config


def shown(point: Point) -> str:
    """ "optimizer.lr=0.001, aggregator.dropout=0.25"."""
    return ", ".join(f"{name}={show_value(value)}" for name, value in point.items())


def show_value(value: Any) -> str:
    """As on the command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def get_value(config: ConfigDict, name: str) -> Any:
    """A setting by its dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def _axis(config: ConfigDict, name: str, text: str, random: int) -> Axis:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"--sweep {name}={text} holds an empty value; write --sweep {name}=VALUE,VALUE")
    if len(parts) == 1 and ":" in text and isinstance(get_value(config, name), int | float):
        return _range(config, name, text, random)
    values = []
    for part in parts:
        value = value_from_text(config, name, part, "--sweep ")
        check_value(name, value)
        if value in values:
            raise ConfigError(f"--sweep {name} names {show_value(value)} twice; name each value once")
        values.append(value)
    return Axis(name, tuple(values))


def _range(config: ConfigDict, name: str, text: str, random: int) -> Axis:
    low_text, high_text, *scale = text.split(":")
    if scale not in ([], ["log"]):
        raise ConfigError(f"--sweep {name}={text} is no range; write LOW:HIGH or LOW:HIGH:log")
    low, high = (value_from_text(config, name, part, "--sweep ") for part in (low_text, high_text))
    for value in (low, high):
        check_value(name, value)
    if not low < high or (scale and low <= 0):
        raise ConfigError(
            f"--sweep {name}={text}: a range goes from a lower to a higher number{', both above 0' if scale else ''}"
        )
    if not random:
        raise ConfigError(f"--sweep {name}={text} is a range: say with --random N how many settings to draw")
    return Axis(name, ends=(low, high), log=bool(scale))
