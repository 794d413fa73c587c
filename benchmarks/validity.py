"""Whether the numbers of a summary can be relied on: calibration, intervals and tests, on invented data of which the truth is known.

    python -m benchmarks.validity --machine laptop

"calibration": ensembles of 5 folds x 1 or 3 models, whose scores are Gaussian or heavy-tailed evidence plus noise of fold and seed;
single models over- or underconfident and shifted; log loss on 2,000 new cases, and accuracy at thresholds chosen out of fold.
"intervals": coverage of the 95 % interval of the AUC in 5 stratified folds; 30 to 200 patients of 1 slide or of 1 to 5, half of a score's
variance being the patient's; scores of the positives as spread as those of the negatives, or twice as spread.
"comparisons": how often two methods that differ by the luck of their training parts alone are called different.
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
from scipy.stats import norm

from benchmarks.common import DEFAULT_MACHINE, RESULTS, write_result
from mil_jax.reports.comparison.significance import corrected_t, delong
from mil_jax.tasks.metrics import recalibration
from mil_jax.tasks.metrics.classification import binary_auc, youden_threshold
from mil_jax.tasks.metrics.within_folds import mean_interval, ranking

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
    figures: dict[str, Any] = {
        "calibration": calibration_of_ensembles(repeats=2 if few else 50),
        "intervals": coverage_of_intervals(repeats=10 if few else 1_000),
        "comparisons": size_of_tests(repeats=20 if few else 2_000),
    }
    of_intervals, of_tests = _interval_rows(figures["intervals"]), _test_rows(figures["comparisons"])
    rows = [*_calibration_rows(figures["calibration"]), *of_intervals, *of_tests]
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


def coverage_of_intervals(
    repeats: int,
    patients: Sequence[int] = (30, 60, 200),
    shares: Sequence[float] = (0.5, 0.12, 0.05),
    spreads: Sequence[float] = (1.0, 2.0),
) -> list[dict[str, Any]]:
    """A row for each setting: how often the interval holds the true AUC, its mean and least width, and the bias of two estimates."""
    rng = np.random.default_rng(1)
    rows = []
    for spread, number, share, slides, auc in itertools.product(spreads, patients, shares, (1, 5), (0.5, 0.8, 0.97)):
        found = []
        for _ in range(repeats):
            score, positive, fold, patient = _cross_validated(rng, number, share, slides, auc, spread)
            ranked = ranking(score, positive, fold, patient, number)
            assert ranked is not None
            found.append((*mean_interval([ranked]), ranked.value, binary_auc(score, positive)))
        low, high, value, pooled = np.array(found).T
        setting = {"patients": number, "positive": share, "slides": slides, "auc": auc, "spread": spread}
        covered = float(np.mean((low <= auc) & (auc <= high)))
        widths = {"width": float(np.mean(high - low)), "least_width": float(np.min(high - low))}
        bias = {"bias": float(np.mean(value) - auc), "bias_across_folds": float(np.mean(pooled) - auc)}
        rows.append({**setting, "coverage": covered, **widths, **bias})
    return rows


def _cross_validated(
    rng: np.random.Generator, number: int, share: float, slides: int, auc: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels, folds and patients of slides; each fold's scores are shifted as a model's are whose training part has fewer
    positives the more are tested.
    """
    labels = np.zeros(number, bool)
    while not 0 < labels.sum() < number:
        labels = rng.random(number) < share
    fold = np.empty(number, int)
    fold[np.concatenate([rng.permutation(np.flatnonzero(labels == side)) for side in (True, False)])] = (
        np.arange(number) % FOLDS
    )
    patient = np.repeat(np.arange(number), rng.integers(1, slides + 1, number))
    of_patient, of_slide = rng.standard_normal(number)[patient], rng.standard_normal(len(patient))
    noise = (of_patient + of_slide) / np.sqrt(2)
    positive = labels[patient]
    score = np.where(positive, norm.ppf(auc) * np.sqrt(1 + spread**2) + spread * noise, noise)
    tested = np.bincount(fold, labels, FOLDS)
    trained = (labels.sum() - tested + 0.5) / (number - np.bincount(fold, minlength=FOLDS) + 1)
    return score + logit(trained)[fold[patient]], positive, fold[patient], patient


def size_of_tests(
    repeats: int, patients: Sequence[int] = (60, 200), overlaps: Sequence[float] = (0.2, 0.5)
) -> list[dict[str, Any]]:
    """A row for each setting: how often two equally good methods are called different at 5 %, over folds and over patients."""
    rng = np.random.default_rng(2)
    rows = []
    for number, overlap in itertools.product(patients, overlaps):
        p = np.array([_equally_good(rng, number, overlap) for _ in range(repeats)])
        called = dict(zip(("folds", "over_patients"), np.mean(p < 0.05, axis=0).tolist(), strict=True))
        rows.append({"patients": number, "overlap": overlap, **called})
    return rows


def _equally_good(rng: np.random.Generator, number: int, overlap: float) -> tuple[float, float]:
    """p over folds and over patients, for two methods whose models differ by the luck of their training parts; overlap: the share of that
    luck that all folds of a method have in common.
    """
    y, fold = np.arange(number) // FOLDS % 2, np.arange(number) % FOLDS
    shared = rng.standard_normal(number)
    scores, aucs = [], []
    for _ in range(2):
        luck = np.sqrt(overlap) * rng.standard_normal() + np.sqrt(1 - overlap) * rng.standard_normal(FOLDS)
        score = 0.6 * (1 + 0.2 * luck[fold]) * (2 * y - 1) + np.sqrt(0.5) * (shared + rng.standard_normal(number))
        scores.append(score)
        aucs.append([binary_auc(score[fold == k], y[fold == k] > 0) for k in range(FOLDS)])
    return corrected_t(*aucs, 1 / (FOLDS - 1)).p, delong(y > 0, *scores).p


def _test_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (
            f"equally good methods called different at 5 %, {row['patients']} patients, {row['overlap']:.0%} of the luck in all folds: "
            "corrected t over folds against a test over patients",
            "4 to 6 % over folds" if row["overlap"] == 0.2 else "stated",
            f"{row['folds']:.1%} against {row['over_patients']:.1%}",
        )
        for row in rows
    ]


def _interval_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    said = []
    for spread, name in ((1.0, "equally spread"), (2.0, "twice as spread")):
        mine = [row for row in rows if row["spread"] == spread]
        coverage = np.array([row["coverage"] for row in mine])
        said.append(
            (
                f"coverage of the AUC's 95 % interval, {len(mine)} settings, positives {name}",
                "at least 93 % everywhere" if spread == 1 else "stated",
                f"{coverage.min():.1%} to {coverage.max():.1%}, mean {coverage.mean():.1%}, under 93 % in {(coverage < 0.93).sum()}; least "
                f"width {min(row['least_width'] for row in mine):.3f}",
            )
        )
    worst = max(rows, key=lambda row: abs(row["bias_across_folds"]))
    said.append(
        (
            "bias of the AUC, folds ranked together against pairs within folds, the worst setting",
            "0 within folds",
            f"{worst['bias_across_folds']:+.3f} against {worst['bias']:+.3f} ({worst['patients']} patients, {worst['positive']:.0%} "
            f"positive, AUC {worst['auc']:g})",
        )
    )
    return said


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
