"""Ranking within groups of cases that one model scored, and its interval.

Scores of different models are not on one scale: ranked together, the AUC of a cross-validation without any signal is below 1/2, since
a training part with few positives goes with a test part with many. So pairs of cases are compared within a group (fold and seed) only.

The interval inverts a score test whose variance is that of Hanley and McNeil (1982) with patients as cases, in Newcombe's way (2006):
it does not shrink to a point at AUC 1. That variance is multiplied by the ratio r of DeLong's, with patients as clusters
(Obuchowski 1997), to it at the estimate; r below 1 counts as if r = 1 had been seen in five more patients of the rarer class. Coverage by
simulation is in `benchmarks/validity.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import rankdata, t

_NEARLY = 1e-7
_PRIOR_PATIENTS = 5


class Ranking(NamedTuple):
    """value: AUC of pairs within groups. influence: of each patient [P] on it. shapes [G, 3]: pairs, patients with positives, patients
    with negatives of each group with a pair. patients: with positives, and with negatives, in all. sides: of each patient [P] 1
    with positives, 0 with negatives only, -1 in no pair.
    """

    value: float
    influence: np.ndarray
    shapes: np.ndarray
    patients: tuple[int, int]
    sides: np.ndarray


def ranking(
    scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, patients: np.ndarray, number: int
) -> Ranking | None:
    """scores, groups [M]; positive: bool [M]; patients: int [M] below `number`. None without a pair, or with a score that is not finite."""
    wins, pairs = np.zeros(number), np.zeros(number)
    shapes, used = [], []
    if not np.isfinite(scores).all():
        return None
    for group in np.unique(groups):
        mine = groups == group
        score, is_positive, patient = scores[mine], positive[mine], patients[mine]
        many, few = int(is_positive.sum()), int((~is_positive).sum())
        if not many or not few:
            continue
        ranks = rankdata(score)
        won = np.empty(len(score))
        won[is_positive] = ranks[is_positive] - rankdata(score[is_positive])
        won[~is_positive] = many - ranks[~is_positive] + rankdata(score[~is_positive])
        wins += np.bincount(patient, won, number)
        pairs += np.bincount(patient, np.where(is_positive, few, many), number)
        used.append((np.unique(patient[is_positive]), np.unique(patient[~is_positive])))
        shapes.append((many * few, *map(len, used[-1])))
    if not shapes:
        return None
    total = pairs.sum() / 2
    value = float(wins.sum() / 2 / total)
    with_positives, with_negatives = (np.unique(np.concatenate(one)) for one in zip(*used, strict=True))
    sides = np.where(np.isin(np.arange(number), with_positives), 1, np.where(pairs > 0, 0, -1))
    influence = (wins - value * pairs) / total
    patients_of = (len(with_positives), len(with_negatives))
    return Ranking(value, influence, np.array(shapes, np.float64), patients_of, sides)


def complete(rankings: Sequence[Ranking | None]) -> list[Ranking]:
    """All of them, or none where one is missing: their mean is then undefined."""
    found = [one for one in rankings if one is not None]
    return found if len(found) == len(rankings) else []


def delong_variance(rankings: Sequence[Ranking]) -> float:
    """Of the mean of AUCs, from the influence of each patient on it; of one AUC patients with and without positives are drawn apart."""
    influence = np.mean([one.influence for one in rankings], axis=0)
    sides = rankings[0].sides if len(rankings) == 1 else np.where(influence != 0, 0, -1)
    variance = 0.0
    for side in (0, 1):
        mine = influence[sides == side]
        if len(mine) > 1:
            variance += len(mine) / (len(mine) - 1) * float(np.sum((mine - mine.mean()) ** 2))
    return variance


def mean_interval(rankings: Sequence[Ranking], level: float = 0.95) -> tuple[float, float]:
    """Of the mean AUC of one-vs-rest rankings of the same patients (of one, for two classes)."""
    value = float(np.mean([one.value for one in rankings]))

    def expected(auc: float) -> float:
        return float(np.mean([_hanley_mcneil(auc, one) for one in rankings]))

    rarer = min(min(one.patients) for one in rankings)
    inside = _NEARLY < value < 1 - _NEARLY
    ratio = delong_variance(rankings) / expected(value) if inside else 1.0
    ratio = max(ratio, (ratio * (rarer - 1) + _PRIOR_PATIENTS) / (rarer - 1 + _PRIOR_PATIENTS))
    degrees = max(max(sum(one.patients) for one in rankings) - 2, 1)
    quantile = float(t.ppf((1 + level) / 2, degrees))

    def excess(auc: float) -> float:
        return (auc - value) ** 2 - quantile**2 * ratio * expected(auc)

    start = min(max(value, _NEARLY), 1 - _NEARLY)
    low = 0.0 if value <= _NEARLY or excess(_NEARLY) <= 0 else brentq(excess, _NEARLY, start)
    high = 1.0 if value >= 1 - _NEARLY or excess(1 - _NEARLY) <= 0 else brentq(excess, start, 1 - _NEARLY)
    return float(low), float(high)


def _hanley_mcneil(auc: float, ranking: Ranking) -> float:
    """Variance of the AUC, were the patients independent cases of one slide each. Groups in which the same patients were scored again, by
    other seeds or in other repeats, count once.
    """
    pairs, positives, negatives = ranking.shapes.T
    share = pairs / pairs.sum()
    both, twice = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    variance = (auc * (1 - auc) + (positives - 1) * both + (negatives - 1) * twice) / (positives * negatives)
    often = (positives + negatives).sum() / sum(ranking.patients)
    return float(np.sum(share**2 * variance) * max(often, 1.0))
