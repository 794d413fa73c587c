"""Learning rates by epoch and step, on the host in float64.

`cosine` is the closed form of Loshchilov and Hutter (2017, eq. 5) without restarts, per epoch unless `per_step`; `step` multiplies
by `gamma` every `every` epochs. A warm-up rises linearly from 0 over the first `warmup_epochs`, step by step, and then joins the
schedule where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil_jax.errors import ConfigError
from mil_jax.strategies.base import Steps

NAMES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """name: one of NAMES. epochs: length of the cosine, 0 for the length of training. min_lr: where the cosine ends.

    Raises ConfigError for an unknown name or an impossible length.
    """

    name: str = "constant"
    epochs: int = 0
    min_lr: float = 0.0
    every: int = 10
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    per_step: bool = False

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"optimizer.schedule.name is {self.name!r}; choose one of {', '.join(NAMES)}")
        if self.every < 1:
            raise ConfigError(f"optimizer.schedule.every is {self.every}; it must be at least 1 epoch")

    def __call__(self, lr: float, steps: Steps) -> np.ndarray:
        """float64 [steps.count]: the learning rate of each step of the epoch."""
        count = max(steps.count, 1)
        progress = steps.epoch + np.arange(steps.count) / count
        time = progress if self.per_step else np.full(steps.count, float(steps.epoch))
        if self.name == "cosine":
            along = np.minimum(time / (self.epochs or steps.epochs), 1.0)
            rates = self.min_lr + (lr - self.min_lr) * (1 + np.cos(np.pi * along)) / 2
        elif self.name == "step":
            rates = lr * self.gamma ** np.floor(time / self.every)
        else:
            rates = np.full(steps.count, lr)
        if self.warmup_epochs > 0:
            rates = rates * np.minimum(1.0, (progress + 1 / count) / self.warmup_epochs)
        return rates
