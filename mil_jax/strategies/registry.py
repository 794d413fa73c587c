"""The strategies that a config may choose for any aggregator by `strategy.name`, and the settings that each brings with it."""

from __future__ import annotations

import dataclasses
from typing import Any

from mil_jax.errors import ConfigError
from mil_jax.strategies.ibmil_settings import IBMILSettings
from mil_jax.strategies.linear_probe_settings import PROBE, LinearProbeSettings
from mil_jax.strategies.mhim_settings import MHIMSettings

SETTINGS: dict[str, type] = {"ibmil": IBMILSettings, PROBE: LinearProbeSettings, "mhim": MHIMSettings}


def default_fields(name: str) -> dict[str, Any]:
    """Settings of the strategy `name` with their defaults. Raises ConfigError if unknown."""
    return {field.name: field.default for field in dataclasses.fields(_settings_of(name))}


def numeric_settings(name: str) -> tuple[str, ...]:
    """Those in which runs of one program may differ. Raises ConfigError if unknown."""
    return _settings_of(name).numeric_settings  # type: ignore[attr-defined]


def _settings_of(name: str) -> type:
    if name not in SETTINGS:
        raise ConfigError(
            f"strategy.name={name!r} is unknown; choose one of {', '.join(SETTINGS)}, or leave it empty for the aggregator's own"
        )
    return SETTINGS[name]
