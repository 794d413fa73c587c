"""Where the values of a config come from: config files, each from the one it starts from, the demo part, the command line."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

DEMO = "demo part"


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The settings by dotted name."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return values


def note_source(config: ConfigDict, source: str) -> None:
    """Remembers, with the config itself, that what changed in it since the last note comes from `source`."""
    object.__setattr__(config, "_steps", [*_steps(config), (source, flat(config))])


def last_noted(config: ConfigDict) -> dict[str, Any]:
    """The values at the last note, by dotted name; none where there is no note."""
    steps = _steps(config)
    return steps[-1][1] if steps else {}


def sources(config: ConfigDict, defaults: dict[str, Any]) -> dict[str, str]:
    """Of each setting that differs from its default the source that last changed it, by dotted name."""
    found: dict[str, str] = {}
    now = dict(defaults)
    for source, values in _steps(config):
        found |= {name: source for name, value in values.items() if name not in now or now[name] != value}
        now |= values
    return {
        name: f"{DEMO} of {found[f'demo.{name}']}" if found[name] == DEMO else found[name]
        for name, value in flat(config).items()
        if not name.startswith("demo.") and (name not in defaults or value != defaults[name])
    }


def _steps(config: ConfigDict) -> list[tuple[str, dict[str, Any]]]:
    return getattr(config, "_steps", [])
