"""Whether the numbers of a summary can be relied on: calibration, intervals and tests, on invented data of which the truth is known.

    python -m benchmarks.validity --machine laptop

"calibration": ensembles of 5 folds x 1 or 3 models, whose scores are Gaussian or heavy-tailed evidence plus noise of fold and seed;
single models over- or underconfident and shifted; log loss on 2,000 new cases, and accuracy at thresholds chosen out of fold.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from benchmarks.common import DEFAULT_MACHINE, RESULTS, write_result
from mil_jax.tasks.metrics import recalibration
from mil_jax.tasks.metrics.classification import youden_threshold

FOLDS = 5
NOISE = (
    (0.3, 0.2, 0.0),
    (0.8, 0.5, 0.0),
    (0.8, 0.5, 0.5),
    (1.5, 0.5, 0.0),
)  # of fold and case, of seed and case, of fold
CONFIDENCE = (0.6, 1.0, 1.7, 2.5)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default=DEFAULT_MACHINE, help="name of the machine, for the result's file")
    parser.add_argument("--small", action="store_true", help="few repeats, to see that it works")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)
    few = options.small
    figures: dict[str, Any] = {"calibration": calibration_of_ensembles(repeats=2 if few else 50)}
    rows = _calibration_rows(figures["calibration"])
    given = list(sys.argv[1:] if arguments is None else arguments)
    write_result("validity", options.machine, figures, rows, arguments=given, folder=options.results)


def calibration_of_ensembles(
    repeats: int, cases: Sequence[int] = (60, 200), seeds: Sequence[int] = (1, 3), settings: int = 0
) -> list[dict[str, Any]]:
    """A row for each setting (or for so many of them): means of log loss and balanced accuracy of each way, over repeats with 10 cases of
    each class.
    """
    rng = np.random.default_rng(0)
    every = list(itertools.product(cases, seeds, NOISE, CONFIDENCE, (0.5, 0.2), ((0, 0.0), (5, 0.7))))
    rows = []
    for number, models, noise, confidence, share, (tails, shift) in every[:: len(every) // settings if settings else 1]:
        found: list[dict[str, dict[str, float]]] = []
        while len(found) < repeats:
            one = _ensemble(rng, number, models, noise, confidence, share, tails, shift)
            found += [one] if one else []
        setting = {"cases": number, "seeds": models, "noise": noise, "confidence": confidence, "share": share}
        means = {
            measure: {way: float(np.mean([one[measure][way] for one in found])) for way in found[0][measure]}
            for measure in found[0]
        }
        rows.append({**setting, "tails": tails, "shift": shift, **means})
    return rows


def _ensemble(
    rng: np.random.Generator,
    number: int,
    seeds: int,
    noise: tuple[float, float, float],
    confidence: float,
    share: float,
    tails: int,
    shift: float,
) -> dict[str, dict[str, float]] | None:
    """Log loss and balanced accuracy of each way; None with fewer than 10 cases of a class."""
    of_case, of_seed, of_fold = noise
    slope = 2 / (1 + of_case**2 + of_seed**2 + of_fold**2)
    bias = of_fold * rng.standard_normal(FOLDS)

    def evidence(y: np.ndarray) -> np.ndarray:
        drawn = rng.standard_t(tails, len(y)) / np.sqrt(tails / (tails - 2)) if tails else rng.standard_normal(len(y))
        return 2 * y - 1 + drawn

    def scores(seen: np.ndarray, fold: Any) -> np.ndarray:
        """[seeds, cases] of log-odds."""
        moved = seen + bias[fold] + of_case * rng.standard_normal(len(seen))
        noisy = moved + of_seed * rng.standard_normal((seeds, len(seen)))
        return confidence * (slope * noisy + logit(share)) + shift

    y, new = ((rng.random(size) < share).astype(float) for size in (number, 2_000))
    if min(y.sum(), (1 - y).sum()) < recalibration.LEAST_CASES:
        return None
    held_out, seen = scores(evidence(y), np.arange(number) % FOLDS), evidence(new)
    models = np.stack([scores(seen, fold) for fold in range(FOLDS)])  # [folds, seeds, cases]
    average, single = (_log_odds(expit(z).mean(axis=axes)) for z, axes in ((models, (0, 1)), (held_out, 0)))
    mean, held_out = models.mean(axis=(0, 1)), held_out.mean(axis=0)
    fits = [recalibration.fit(z[:, None], y[:, None], exclusive=False) for z in (single, held_out)]
    assert fits[0] is not None
    assert fits[1] is not None
    between = float(models.mean(axis=1).var(axis=0, ddof=1).mean())
    log_odds = {
        "average": average,
        "calibrated by single models": _log_odds(fits[0](average[:, None])[:, 0]),
        "calibrated": _log_odds(fits[1](mean[:, None], fits[1].sharpness(between, FOLDS))[:, 0]),
    }
    called = {
        "single models' threshold": average >= youden_threshold(single, y > 0),
        "calibrated": mean >= youden_threshold(held_out, y > 0),
    }
    return {
        "log_loss": {name: float(np.mean(np.logaddexp(0, z) - new * z)) for name, z in log_odds.items()},
        "accuracy": {name: float(c[new > 0].mean() + (~c[new == 0]).mean()) / 2 for name, c in called.items()},
    }


def _log_odds(p: np.ndarray) -> np.ndarray:
    return logit(np.clip(p, 1e-12, 1 - 1e-12))


def _calibration_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    def said(way: str) -> str:
        change = np.array([row["log_loss"][way] - row["log_loss"]["average"] for row in rows])
        return f"mean {change.mean():+.3f}, worst {change.max():+.3f}, more than .005 worse in {(change > 0.005).mean():.0%}"

    gained = np.array([row["accuracy"]["calibrated"] - row["accuracy"]["single models' threshold"] for row in rows])
    return [
        (
            f"log loss of an ensemble after calibration less before, {len(rows)} settings",
            "worst at most +.010",
            f"{said('calibrated')}; calibrated by single models: {said('calibrated by single models')}",
        ),
        (
            "balanced accuracy of an ensemble at its own threshold: on means of scores less on means of probabilities",
            "mean at least 0",
            f"mean {gained.mean():+.3f}, worst {gained.min():+.3f}, best {gained.max():+.3f}",
        ),
    ]


if __name__ == "__main__":
    main()
