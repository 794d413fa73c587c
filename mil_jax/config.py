"""How a config file and `--config.a.b=value` overrides become one ConfigDict (the settings themselves: `settings.py`).

A config file defines `get_config()`, which starts from `base_config()`, or from another config file by `start_from()`, and sets what its
method needs. `config.demo` holds the settings used instead when no data is named.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

import mil_jax
from mil_jax.errors import ConfigError, UserError
from mil_jax.setting_names import present_arguments, rename_old
from mil_jax.setting_sources import DEMO, flat, last_noted, note_source
from mil_jax.settings import SETTINGS, check_value

_NAMED_GROUPS = ("reembed", "strategy")  # whose other settings come with their name
_METHOD_GROUPS = ("aggregator.", "reembed.", "strategy.", "demo.")  # whose settings their method knows


def base_config() -> ConfigDict:
    """The defaults of every setting but the aggregator's. Lists are written as text with commas: `data.classes = "LUAD,LUSC"`."""
    config = ConfigDict({"aggregator": {}, "demo": {}})
    for name, setting in SETTINGS.items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            if part not in group:
                group[part] = ConfigDict()
            group = group[part]
        group[last] = setting.default
    return config


def start_from(path: str) -> ConfigDict:
    """The settings of another config file, found as `--config` finds it, for a file that says only what differs.

    The name is left to the file that starts from it. Raises ConfigError as `find_config` and `load_config` do.
    """
    config = load_config(find_config(path))
    config.name = ""
    return config


def find_config(path: str) -> Path:
    """The config file as named, or one that came with the package: `configs/abmil.py`, or `abmil`.

    Raises ConfigError when neither exists, suggesting the nearest.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = _shipped_folders()
    names = (path.removeprefix("configs/"), f"{path}.py", f"recipes/{path}.py")
    found = [folder / name for folder in shipped for name in names if (folder / name).is_file()]
    if found:
        return found[0]
    known = [f"configs/{file.relative_to(folder)}" for folder in shipped for file in sorted(folder.rglob("*.py"))]
    nearest = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
    advice = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(known)}"
    raise ConfigError(f"--config={path}: there is no such file; {advice}")


def _shipped_folders() -> list[Path]:
    """Where the configs of the package lie, in a checkout and when installed."""
    package = Path(mil_jax.__file__).parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def _shown(path: Path) -> str:
    """A config file as the user would name it."""
    for folder in _shipped_folders():
        if path.resolve().is_relative_to(folder.resolve()):
            return str(Path("configs") / path.resolve().relative_to(folder.resolve()))
    return str(path)


def load_config(path: Path) -> ConfigDict:
    """Runs a config file's `get_config()` and fills in the defaults of its aggregator.

    Raises ConfigError for a file that cannot be run, and for a setting that does not exist or has another type.
    """
    config = run_file(path, "get_config")
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={path}: get_config() must return a ConfigDict made by base_config()")
    try:
        rename_old(config, last_noted(config) or flat(base_config()))
    except ConfigError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    _check_file(config, path)
    config.name = config.name or path.stem
    _fill_method_settings(config)
    note_source(config, _shown(path))
    return config


def run_file(path: Path, function: str) -> Any:
    """What the `function` of a config file returns. Raises ConfigError for a file that cannot be run, or has no such function."""
    spec = importlib.util.spec_from_file_location(f"mil_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: this is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(f"--config={path}: the file defines no {function}()")
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:  # the file is the user's program: whatever it raises is said with its line
        raise ConfigError(f"--config={path}{_line_of(error, path)}: {type(error).__name__}: {error}") from error


def default_settings(config: ConfigDict) -> dict[str, Any]:
    """The defaults of all settings, also of those that the config's methods bring with them, by dotted name."""
    own = {name: default for name, default in _method_settings(config).items() if default is not dataclasses.MISSING}
    return flat(base_config()) | own


def _method_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings that the config's aggregator, re-embedding and strategy have, by dotted name, with their defaults."""
    from mil_jax import aggregators  # late: these bring Flax, which takes a second, and a wrong key is said before
    from mil_jax.aggregators import reembedding
    from mil_jax.strategies import registry

    groups = {"aggregator": aggregators.default_fields(config.aggregator.name)}
    if "reembed" in config and config.reembed.name:
        groups["reembed"] = reembedding.default_fields(config.reembed.name)
    if "strategy" in config and config.strategy.name:
        groups["strategy"] = registry.default_fields(config.strategy.name)
    return {f"{group}.{field}": default for group, fields in groups.items() for field, default in fields.items()}


def _fill_method_settings(config: ConfigDict) -> None:
    for name, default in _method_settings(config).items():
        group, field = name.split(".")
        if field not in config[group] and default is not dataclasses.MISSING:
            config[group][field] = default


def _line_of(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f", line {lines[-1]}" if lines else ""


def _check_file(config: ConfigDict, path: Path) -> None:
    """Raises ConfigError where a config file lacks or misspells a setting or gives it another type."""
    if "aggregator" not in config or "name" not in config.aggregator:
        raise ConfigError(f"--config={path}: aggregator.name is not set; such as config.aggregator.name = 'abmil'")
    known = [*SETTINGS, "aggregator.name", *_method_settings(config)]
    given = flat(config)
    for name in [*given, *SETTINGS]:
        setting = name.removeprefix("demo.")
        if setting not in known:
            raise ConfigError(f"--config={path}: {name} is not a setting; {_nearest(setting, known)}")
        if name not in given:
            raise ConfigError(f"--config={path}: {name} is missing; start from base_config()")
        if setting in SETTINGS:
            kind, value = type(SETTINGS[setting].default), given[name]
            if not isinstance(value, kind) and not (kind is float and type(value) is int):
                raise ConfigError(f"--config={path}: {name}={value!r} must be {_kind(kind)}")


def parse(
    arguments: list[str], define: Callable[[flags.FlagValues], None]
) -> tuple[ConfigDict, flags.FlagValues, list[str]]:
    """The config that a command line asks for, its other flags, and what the demo part changed.

    arguments: without the program's name. define: defines the command's own flags. The demo part applies when neither
    `data.features` nor `data.shards` is named; overrides on the command line win over it.
    Raises ConfigError for an unknown or mistyped setting, and for a number out of its limits.
    """
    named, overrides = split_off_config(arguments)
    if not named:
        raise ConfigError("--config is missing: name a config file, such as --config configs/abmil.py")
    overrides = present_arguments(overrides)
    _require_known(overrides)
    config = load_config(find_config(named))
    asked_for = ConfigDict(config.to_dict())
    _overridden(asked_for, overrides, define)
    changed = []
    if not (asked_for.data.features or asked_for.data.shards or asked_for.data.synthetic.bags):
        changed = apply_demo(config)
        note_source(config, DEMO)
    values = _overridden(config, overrides, define)
    note_source(config, "command line")
    for name, value in flat(config).items():
        check_value(name, value)
    return config, values, changed


def _require_known(arguments: list[str]) -> None:
    """Raises ConfigError for a setting that no method can bring with it, before the methods are imported, which takes a second."""
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and not name.startswith(_METHOD_GROUPS) and name not in SETTINGS:
            known = [f"--config.{setting}" for setting in SETTINGS]
            raise ConfigError(f"--config.{name} is not a setting; {_nearest(f'--config.{name}', known)}")


def help_text(arguments: list[str], define: Callable[[flags.FlagValues], None], about: str) -> str | None:
    """What `--help` shows: `about`, the command's own flags, all settings with their values; None when it is not asked for.

    The values are those of the config file that is named, else the defaults.
    """
    if not {"--help", "-help", "-h", "--helpfull"} & set(arguments):
        return None
    named, _ = split_off_config(arguments)
    config = load_config(find_config(named)) if named else base_config()
    values = flags.FlagValues()
    define(values)
    lines = [about, "", "flags:"]
    for name in sorted(values):
        lines += _entry(f"--{name}", values[name].help or "")
    lines += ["", f"settings and their values in {named}:" if named else "settings and their defaults:"]
    own = [
        name
        for name in flat(config)
        if name.startswith(("aggregator.", *(f"{group}." for group in _NAMED_GROUPS))) and name not in SETTINGS
    ]
    for name in [*SETTINGS, *own]:
        meaning = SETTINGS[name].meaning.replace("`", "") if name in SETTINGS else ""
        value = _get(config, name)
        lines += _entry(f"--config.{name}={str(value).lower() if isinstance(value, bool) else value}", meaning)
    if named and len(config.demo):
        lines += ["", "changed when no data is named (neither data.features nor data.shards):"]
        lines += [f"  {line}" for line in apply_demo(config)]
    if not named:
        lines += ["", "The aggregator's settings are shown with a config: --config configs/abmil.py --help"]
    return "\n".join(lines)


def _entry(name: str, meaning: str) -> Iterator[str]:
    """Lines of a two-column list, the meaning beside or, where the name is long, below it."""
    indent = 38
    lines = textwrap.wrap(meaning, 120 - indent) or [""]
    head = f"  {name}"
    if len(head) >= indent:
        yield head
        head = ""
    for line in lines:
        if head or line:
            yield f"{head:<{indent}}{line}".rstrip()
        head = ""


def split_off_config(arguments: list[str]) -> tuple[str, list[str]]:
    """(the config file as named, "" when it is not; all other arguments)."""
    rest, named = [], ""
    waiting = iter(arguments)
    for argument in waiting:
        if argument in ("--config", "-config"):
            named = next(waiting, "")
        elif argument.startswith(("--config=", "-config=")):
            named = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return named, rest


def _overridden(
    config: ConfigDict, overrides: list[str], define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """Parses the overrides into `config`, in place, and the command's own flags."""
    own = []
    # A re-embedding and a strategy bring settings with them, so their names are read first.
    first = tuple(f"config.{group}.name=" for group in _NAMED_GROUPS)
    for argument in sorted(overrides, key=lambda argument: not argument.lstrip("-").startswith(first)):
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
    require_setting(config, name)
    set_value(config, name, value_from_text(config, name, text))
    if name in [f"{group}.name" for group in _NAMED_GROUPS]:
        _fill_method_settings(config)  # its settings can be given now


def set_value(config: ConfigDict, name: str, value: Any) -> None:
    """Sets the setting with the dotted `name`."""
    *groups, last = name.split(".")
    for part in groups:
        config = config[part]
    config[last] = value


def require_setting(config: ConfigDict, name: str, before: str = "--config.") -> None:
    """Raises ConfigError for a setting that does not exist, suggesting the nearest; `before`: what stands before its name."""
    known = flat(config)
    if name not in known:
        shown = [f"{before}{other}" for other in known if not other.startswith("demo.")]
        raise ConfigError(f"{before}{name} is not a setting; {_nearest(f'{before}{name}', shown)}")


def value_from_text(config: ConfigDict, name: str, text: str, before: str = "--config.") -> Any:
    """`text` as a value of the type that the setting `name` has. Raises ConfigError where it is none."""
    current = _get(config, name)
    try:
        return _read(text, current)
    except (KeyError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{before}{name}={text} must be {_kind(type(current))}") from error


def source_of(config: ConfigDict, about: str) -> str:
    """The text of a config file that gives these settings. about: its docstring."""
    lines = [f'"""{about}"""', "", "from mil_jax.config import ConfigDict, base_config", "", ""]
    lines += ["def get_config() -> ConfigDict:", '    """The recipe."""', "    config = base_config()"]
    for group in ("aggregator", *(group for group in _NAMED_GROUPS if config[group].name)):
        fields = [f"            {key!r}: {value!r}," for key, value in config[group].items()]
        lines += [f"    config.{group} = ConfigDict(", "        {", *fields, "        }", "    )"]
    for name, setting in SETTINGS.items():
        value = _get(config, name)
        if value != setting.default and name.split(".")[0] not in _NAMED_GROUPS:
            lines.append(f"    config.{name} = {value!r}")
    return "\n".join([*lines, "    return config"]) + "\n"


def _read(text: str, current: Any) -> Any:
    """`text` as a value of the type that a setting has now."""
    if isinstance(current, bool):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    if current is None or isinstance(current, tuple | list) or text == "None":  # only aggregators have such settings
        return ast.literal_eval(text)
    return type(current)(text)


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


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _kind(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, kind.__name__)


def _nearest(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}?" if nearest else "--help lists the settings"
