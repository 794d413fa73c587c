"""Checks of an aggregator's settings: each raises ConfigError with the setting, its value and what would do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mil_jax.errors import ConfigError


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise ConfigError(f"aggregator.{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"aggregator.{name}={value!r} must be a positive whole number")


def rate(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"aggregator.{name}={value!r} must be a number in [0, 1)")


def share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"aggregator.{name}={value!r} must be a number in [0, 1]")


def not_negative(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ConfigError(f"aggregator.{name}={value!r} must be a number that is not negative")
