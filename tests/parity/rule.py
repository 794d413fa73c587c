"""When a stored array and ours agree.

|a - b| <= 1e-4 max(1e-2, max|b|) for outputs and losses, 1e-3 in place of 1e-4 for gradients and their norms;
integers and booleans are equal, pictures (uint8) up to the case's `image_levels`. Where the case's own `tolerance` is
looser it holds; of several entries for an array the most specific one counts: `by_output`, then `rtol_of_max`
(relative to max|b|), then `atol` + `rtol` |b|; for gradients `grad_*`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.parity.case import Case


@dataclass(frozen=True)
class Comparison:
    """error and bound belong to the element where error / bound is largest."""

    error: float
    bound: float
    passed: bool

    @property
    def ratio(self) -> float:
        return self.error / self.bound if self.bound else (0.0 if self.error == 0 else np.inf)


def compare(key: str, ours: Any, stored: np.ndarray, tolerance: dict[str, Any]) -> Comparison:
    """Compares our value with the stored one. Axes of length 1 do not count; any other difference of shape fails."""
    ours, stored = np.squeeze(np.asarray(ours)), np.squeeze(stored)
    if ours.shape != stored.shape:
        return Comparison(np.inf, 0.0, False)
    if stored.dtype == np.uint8 and "image_levels" in tolerance:
        levels = float(np.abs(ours.astype(np.float64) - stored).max(initial=0.0))
        return Comparison(levels, float(tolerance["image_levels"]), levels <= tolerance["image_levels"])
    if stored.dtype.kind in "biu":
        differ = int(np.count_nonzero(ours.astype(np.float64) != stored.astype(np.float64)))
        return Comparison(float(differ), 0.0, differ == 0)
    a, b = ours.astype(np.float64), stored.astype(np.float64)
    if b.size == 0:
        return Comparison(0.0, 0.0, True)
    limit = bounds(key, b, tolerance)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(equal, 0.0, np.abs(a - b))
    error = np.where(np.isnan(error), np.inf, error)
    worst = np.unravel_index(np.argmax(error / limit), error.shape)
    return Comparison(float(error[worst]), float(limit[worst]), bool(np.all(error <= limit)))


def bounds(key: str, b: np.ndarray, tolerance: dict[str, Any]) -> np.ndarray:
    """Largest difference allowed for each element of the stored array b."""
    kind, _, name = key.partition("/")
    finite = np.abs(b[np.isfinite(b)])
    largest = finite.max() if finite.size else 0.0
    general = (1e-4 if kind == "out" else 1e-3) * max(1e-2, largest)
    if kind == "out":
        own = _own_of_output(name, b, largest, tolerance)
    elif kind == "grad":
        own = max(tolerance.get("grad_atol", 0.0), tolerance.get("grad_rtol_of_max", 0.0) * largest)
    else:
        own = max(
            tolerance.get("grad_norm_rtol", 0.0) * largest + tolerance.get("grad_atol", 0.0),
            tolerance.get("grad_norm_atol", 0.0),
            tolerance.get("grad_rtol_of_max", 0.0) * largest,
        )
    return np.maximum(general, np.broadcast_to(own, b.shape))


def _own_of_output(name: str, b: np.ndarray, largest: float, tolerance: dict[str, Any]) -> Any:
    if name in tolerance.get("by_output", {}):
        return tolerance["by_output"][name]
    if "rtol_of_max" in tolerance:
        return tolerance["rtol_of_max"] * largest
    return tolerance.get("atol", 0.0) + tolerance.get("rtol", 0.0) * np.where(np.isfinite(b), np.abs(b), 0.0)


def not_compared(case: Case) -> dict[str, str]:
    """Stored arrays that the case itself excludes -> reason."""
    reasons = {}
    for entry, reason in (
        ("zero_true_grad", "its true gradient is zero"),
        ("zero_gradients", "its true gradient is zero"),
        ("params_without_grad", "it has no gradient"),
    ):
        for parameter in case.meta.get(entry, []):
            for key in (f"grad/{parameter}", f"grad_norm/{parameter}"):
                if key in case.arrays:
                    reasons[key] = reason
    return reasons
