"""The settings of a run: their defaults, and how a config file and `--config.a.b=value` overrides become one ConfigDict.

A config file defines `get_config()`, which starts from `base_config()` and sets what its method needs. `config.demo` holds the
settings used instead when no data is named, as dotted names.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

import mil_jax
from mil_jax.errors import ConfigError

ConfigDict = ml_collections.ConfigDict


def base_config() -> ConfigDict:
    """The defaults of every setting but the aggregator's. Lists are written as text with commas: `data.classes = "LUAD,LUSC"`."""
    config = ConfigDict()
    config.name = ""
    config.run = ""  # the run folder; runs/<name> when empty
    config.aggregator = ConfigDict()
    config.task = ConfigDict(
        {"name": "classification", "loss_name": "cross_entropy", "label_smoothing": 0.0, "multi_label": False}
    )
    config.data = ConfigDict(
        {
            "features": "",  # a folder of CLAM, TRIDENT, STAMP or plain feature files; converted once
            "shards": "",  # or a folder that data_prep.shard wrote
            "cache": "",  # where converted features are kept; the user's cache folder when empty
            "encoder_name": "",  # where the feature files do not say
            "nonfinite": "error",  # error | drop_rows | drop_slide
            "labels": "",  # the label table: csv, tsv, xlsx or parquet
            "slides_table": "",  # STAMP's second table, patient -> file
            "target": "",  # the label column, or several with commas
            "id_column": "",  # the slide column, where it is not recognised
            "patient": "",  # a column, regex:PATTERN, tcga or none
            "site": "",  # a column of sites, or tcga
            "unit": "slide",  # slide | patient
            "filter": "",  # an expression on the table's columns
            "classes": "",  # the classes in order; as found, sorted, when empty
            "positive": "",  # the positive class of two
            "duplicates": "error",  # error | newest | all
            "min_matched": 0.5,
            "normalize": "none",  # none | l2 | zscore
            "max_waste": 0.15,  # the bucket ladder's limits
            "max_shapes": 12,
        }
    )
    config.splits = ConfigDict(
        {
            "kind": "kfold",
            "file": "",  # a published or own split; `kind` is then read from it
            "folds": 5,
            "repeats": 1,
            "seed": 0,
            "val_fraction": 0.15,  # of the training patients, where the split has no validation part
            "test_fraction": 0.2,  # monte_carlo
            "group": "",  # the column that kind=group keeps together
            "test": "",  # the official test set: a column, or a file of ids
        }
    )
    config.optimizer = ConfigDict(
        {
            "name": "adam",
            "lr": 2e-4,
            "weight_decay": 1e-5,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "momentum": 0.0,
            "nesterov": False,
            "clip_norm": 0.0,
            "accumulate_steps": 1,
            "schedule": {
                "name": "constant",
                "epochs": 0,
                "min_lr": 0.0,
                "every": 10,
                "gamma": 0.1,
                "warmup_epochs": 0.0,
                "per_step": False,
            },
        }
    )
    config.train = ConfigDict(
        {
            "epochs": 50,
            "num_seeds": 1,
            "seed": 0,  # the first seed
            "protocol": "clean",  # clean | reference
            "select": "val_loss",  # last | val_loss | val_auc
            "patience": 0,
            "min_epochs": 0,
            "batch_size": 1,
            "class_weights": False,
            "balanced": False,
            "permute_labels": False,  # a control: the labels of the training bags are shuffled
            "checkpoint_seconds": 60.0,
            "slots_per_dispatch": 64,
            "replica_axis": "auto",  # auto | map | vmap
            "matmul_precision": "default",
            "tensorboard": False,
            "wandb": False,
        }
    )
    config.demo = ConfigDict()
    return config


def find_config(path: str) -> Path:
    """The config file as named, or the copy that came with the package (`configs/abmil.py`).

    Raises ConfigError when neither exists, suggesting the nearest.
    """
    if Path(path).is_file():
        return Path(path)
    package = Path(mil_jax.__file__).parent
    shipped = [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
    for folder in shipped:
        candidate = folder.parent / path if Path(path).parts[:1] == ("configs",) else folder / path
        if candidate.is_file():
            return candidate
    known = [f"configs/{file.relative_to(folder)}" for folder in shipped for file in sorted(folder.rglob("*.py"))]
    nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
    advice = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(known)}"
    raise ConfigError(f"--config={path}: there is no such file; {advice}")


def load_config(path: Path) -> ConfigDict:
    """Runs a config file's `get_config()`. Raises ConfigError when it has none."""
    spec = importlib.util.spec_from_file_location(f"mil_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: this is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path}: the file defines no get_config()")
    return module.get_config()


def parse(
    arguments: list[str], define: Callable[[flags.FlagValues], None]
) -> tuple[ConfigDict, flags.FlagValues, list[str]]:
    """The config that a command line asks for, its other flags, and what the demo part changed.

    arguments: without the program's name. define: defines the command's own flags. The demo part applies when neither
    `data.features` nor `data.shards` is named; overrides on the command line win over it.
    Raises ConfigError for an unknown or mistyped setting.
    """
    path, overrides = _split_off_config(arguments)
    config = load_config(path)
    values = _overridden(config, overrides, define)
    if config.data.features or config.data.shards:
        return config, values, []
    config = load_config(path)
    changed = apply_demo(config)
    values = _overridden(config, overrides, define)
    return config, values, changed


def _split_off_config(arguments: list[str]) -> tuple[Path, list[str]]:
    """(the config file, all other arguments)."""
    rest, named = [], None
    waiting = iter(arguments)
    for argument in waiting:
        if argument in ("--config", "-config"):
            named = next(waiting, None)
        elif argument.startswith(("--config=", "-config=")):
            named = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    if not named:
        raise ConfigError("--config is missing: name a config file, such as --config configs/abmil.py")
    return find_config(named), rest


def _overridden(
    config: ConfigDict, overrides: list[str], define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """Parses the overrides into `config`, in place, and the command's own flags."""
    own = []
    for argument in overrides:
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith("config."):
            own.append(argument)
        elif not equals:
            raise ConfigError(f"--{name} has no value; write --{name}=VALUE")
        else:
            set_from_text(config, name.removeprefix("config."), text)
    values = flags.FlagValues()
    define(values)
    try:
        positional = values(["mil_jax", *own])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; --help lists the options") from error
    if positional:
        raise ConfigError(f"{positional[0]!r} is no option; settings are given as --config.data.labels=table.csv")
    return values


def set_from_text(config: ConfigDict, name: str, text: str) -> None:
    """Sets the setting with the dotted `name` to `text`, read as the type that it has.

    Raises ConfigError for a setting that does not exist, suggesting the nearest, and for a value of another type.
    """
    known = dotted_names(config)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        advice = f"did you mean --config.{nearest[0]}?" if nearest else "--help lists the settings"
        raise ConfigError(f"--config.{name} is not a setting; {advice}")
    *groups, last = name.split(".")
    group = config
    for part in groups:
        group = group[part]
    kind = type(group[last])
    try:
        if kind is bool:
            value: Any = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        else:
            value = kind(text)
    except (KeyError, ValueError) as error:
        what = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise ConfigError(f"--config.{name}={text} must be {what}") from error
    group[last] = value


def dotted_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """All settings as dotted names."""
    names = []
    for key, value in config.items():
        names += dotted_names(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"]
    return names


def apply_demo(config: ConfigDict) -> list[str]:
    """Applies `config.demo` in place; says what that changed."""
    changed = []

    def apply(target: ConfigDict, demo: ConfigDict, prefix: str) -> None:
        for key, value in demo.items():
            if isinstance(value, ConfigDict):
                apply(target[key], value, f"{prefix}{key}.")
            elif target[key] != value:
                changed.append(f"{prefix}{key} = {value} instead of {target[key]}")
                target[key] = value

    apply(config, config.demo, "")
    return changed
