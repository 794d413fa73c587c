"""The settings of a linear probe: L2 logistic regression, ridge or Cox on mean features, its strength chosen on validation."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from mil_jax.errors import ConfigError

PROBE = "linear_probe"  # strategy.name


@dataclasses.dataclass(frozen=True)
class LinearProbeSettings:
    """strengths: of the penalty strength / 2 * |W|^2 on the mean training loss, features scaled to standard deviation 1 over the
    training bags; scikit-learn's logistic regression calls 1 / (M strength) C, its ridge M strength / 2 alpha.

    Raises ConfigError for a strength that is no positive number.
    """

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

    numeric_settings: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not self.strengths or not all(math.isfinite(one) and one > 0 for one in self.strengths):
            raise ConfigError(f"strategy.strengths={self.strengths} must be positive numbers, such as (0.01,1,100)")
