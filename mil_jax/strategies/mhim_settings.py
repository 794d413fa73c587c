"""The settings of MHIM-MIL: what its teacher masks, how the student learns from it, and what changes in the course of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mil_jax.errors import ConfigError
from mil_jax.layers import instance_masks
from mil_jax.strategies.base import Steps

SCORES = ("attention", "class")
INITIAL = ("none", "fc", "all")


@dataclasses.dataclass(frozen=True)
class MHIMSettings:
    """mask_random, mask_low: shares of a bag's instances that the student does not see: any, and those of the lowest scores.
    mask_high: share of the highest scores. mask_high_share: drawn from a pool so much smaller than the whole; 1 = all of the pool.
    mask_high_cosine: mask_high falls to 0 by a cosine over `schedule_epochs` (0 = all epochs of training).
    fusion: how several heads agree on the instances: "vote" or "mean" (their union).
    scores: the teacher's "attention", or how strongly it takes an instance for any "class".
    attention_layer: 0 (first) or 1 (last), of an aggregator with a class token.
    consistency_weight, task_weight: of the two losses. temperature: of the teacher's embedding in the consistency loss.
    momentum: of the moving average that the teacher is. momentum_cosine: it rises to `momentum_final` as the share falls.
    teacher: "train" (a plain run of `teacher_epochs` for every fold and seed, 0 = train.epochs, whose best state it begins with),
        "none" (it begins as the student), or a run folder or PyTorch file with weights.
    init_teacher, init_student: what begins with these weights: the teacher or not; of the student nothing ("none"), its feature layer
        ("fc") or "all".
    merge_queries: v2: of the instances that the mask leaves, a random share `merge_ratio` stays and the others are merged into so many
        tokens; 0 = none. merge_momentum: of the average that the queries are. merge_test: predictions, too, read the tokens of all
        instances.
    teacher_dropout: the teacher's dropout is active in training. teacher_is_student: there is no average; the student masks for itself.

    Raises ConfigError for values that cannot work.
    """

    mask_random: float = 0.0
    mask_low: float = 0.0
    mask_high: float = 0.0
    mask_high_share: float = 1.0
    mask_high_cosine: bool = False
    schedule_epochs: int = 0
    fusion: str = "vote"
    scores: str = "attention"
    attention_layer: int = 0
    consistency_weight: float = 0.1
    task_weight: float = 1.0
    temperature: float = 0.1
    momentum: float = 0.9999
    momentum_final: float = 1.0
    momentum_cosine: bool = False
    teacher: str = "train"
    teacher_epochs: int = 0
    init_teacher: bool = True
    init_student: str = "fc"
    teacher_dropout: bool = True
    teacher_is_student: bool = False
    merge_queries: int = 0
    merge_ratio: float = 0.8
    merge_momentum: float = 0.9998
    merge_test: bool = False

    numeric_settings: ClassVar[tuple[str, ...]] = (
        *("mask_random", "mask_low", "mask_high", "mask_high_share"),
        *("consistency_weight", "task_weight", "temperature", "momentum", "momentum_final"),
        *("merge_ratio", "merge_momentum"),
    )

    def __post_init__(self) -> None:
        for name in (
            *("mask_random", "mask_low", "mask_high", "momentum", "momentum_final"),
            *("merge_ratio", "merge_momentum"),
        ):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "must lie in [0, 1]")
        _require("mask_high_share", self.mask_high_share, 0 < self.mask_high_share <= 1, "must lie in (0, 1]")
        _require("temperature", self.temperature, self.temperature > 0, "must be positive")
        for name in ("consistency_weight", "task_weight", "schedule_epochs", "teacher_epochs", "merge_queries"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "must not be negative")
        _require(
            "attention_layer", self.attention_layer, self.attention_layer in (0, 1), "must be 0 (first) or 1 (last)"
        )
        for name, choices in (("fusion", instance_masks.FUSIONS), ("scores", SCORES), ("init_student", INITIAL)):
            value = getattr(self, name)
            _require(name, value, value in choices, f"is unknown; choose one of {', '.join(choices)}")
        if self.merge_queries and (self.mask_random or self.mask_low or self.fusion != "vote"):
            raise ConfigError(
                "strategy.merge_queries splits what the high part of the mask leaves: set strategy.mask_random and strategy.mask_low "
                "to 0, and strategy.fusion to vote"
            )
        if self.teacher == "train" and not self.init_teacher and self.init_student == "none":
            raise ConfigError(
                "strategy.teacher=train trains weights that nothing begins with: set strategy.init_teacher or strategy.init_student, or "
                "strategy.teacher=none"
            )
        if not self.teacher:
            raise ConfigError("strategy.teacher is empty: set it to train, none, or a run folder or PyTorch file")

    def with_hyper(self, hyper: Mapping[str, float]) -> MHIMSettings:
        """With the numeric settings of one run ("strategy.mask_random") in place of the fields. Host only."""
        own: dict[str, Any] = {
            name: hyper[f"strategy.{name}"] for name in self.numeric_settings if f"strategy.{name}" in hyper
        }
        return dataclasses.replace(self, **own)

    def uses(self, part: str, hyper: Mapping[str, object]) -> bool:
        """Whether a part of the mask (or a loss) is in use in any run: its setting is positive, or differs between runs."""
        return f"strategy.{part}" in hyper or getattr(self, part) > 0

    def least_masked(self) -> float:
        """A share of every bag that is surely masked, whatever the step: the student reads no more than the rest."""
        low = self.mask_low if self.fusion == "vote" else 0.0
        return max(self.mask_random, low)

    def high_share(self, steps: Steps) -> np.ndarray:
        """float64 [count]: mask_high in each step of an epoch."""
        falling = self._falling(steps) if self.mask_high_cosine else np.ones(steps.count)
        return self.mask_high * falling

    def momenta(self, steps: Steps) -> np.ndarray:
        """float64 [count]: the momentum of the average after each step of an epoch."""
        if not self.momentum_cosine:
            return np.full(steps.count, self.momentum)
        return self.momentum_final + (self.momentum - self.momentum_final) * self._falling(steps)

    def _falling(self, steps: Steps) -> np.ndarray:
        """A cosine from 1 to 0 over the steps of all epochs."""
        total = (self.schedule_epochs or steps.epochs) * max(steps.count, 1)
        step = np.minimum(steps.epoch * steps.count + np.arange(steps.count), total)
        return (1 + np.cos(np.pi * step / total)) / 2


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"strategy.{name}={value!r} {what}")
