"""Calibrated probabilities from scores that were held out: bias-corrected temperature scaling, also of an average of several models.

Of scores s [M, C], log-probabilities of classes or log-odds of labels, the calibrated ones are s / T + bias (Alexandari et al. 2020;
without the bias it is Guo et al. 2017). T and bias are those of the smallest log loss of the held-out cases, with a mild prior that keeps
few cases from saying much.

An average over models has less noise than the single models whose held-out scores are known, so it may speak more clearly than
they: averaging first and calibrating by single models makes it too cautious. Were the scores of a class Gaussian, evidence (calibrated
score less prior) would have to be multiplied by W / (W - B (1 - 1/K)): W the variance of a single model's scores within a class, B that
between the K models for one case. The root of it is taken, which does less harm where the two are estimated from few cases
(`benchmarks/validity.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from mil_jax.tasks.metrics.classification import EPSILON, distribution

LEAST_CASES = 10  # of each class, or with and without each label
_TEMPERATURE_SD, _BIAS_SD = 0.35, 0.5  # of the prior of log T and of a bias


def scores_of(probabilities: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Centred log-probabilities of classes that exclude each other, else log-odds; [M, C]."""
    if not exclusive:
        return logit(np.clip(probabilities, EPSILON, 1 - EPSILON))
    log_p = np.log(np.maximum(distribution(probabilities), EPSILON))
    return log_p - log_p.mean(axis=1, keepdims=True)


def probabilities_of_scores(scores: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """The inverse of `scores_of`."""
    return softmax(scores, axis=-1) if exclusive else expit(scores)


@dataclass(frozen=True)
class Recalibration:
    """temperature, bias [C]: see above. prior [C]: the scores of the shares of the classes. within: variance of a score within a class.
    exclusive: whether classes exclude each other.
    """

    temperature: float
    bias: np.ndarray
    prior: np.ndarray
    within: float
    exclusive: bool

    def sharpness(self, between: float, models: int) -> float:
        """What evidence is multiplied by for an average of `models`, whose scores of one case have the variance `between`."""
        kept = 1 - between / max(self.within, EPSILON) * (1 - 1 / models)
        return float(np.clip(kept, 1 / models, 1.0) ** -0.5)

    def __call__(self, scores: np.ndarray, sharpness: float = 1.0) -> np.ndarray:
        """Probabilities [M, C] of scores [M, C]."""
        calibrated = scores / self.temperature + self.bias
        return probabilities_of_scores(self.prior + sharpness * (calibrated - self.prior), exclusive=self.exclusive)


def fit(scores: np.ndarray, targets: np.ndarray, *, exclusive: bool) -> Recalibration | None:
    """From held-out scores [M, C] and targets [M, C] of 0 and 1 (NaN = unknown); None with fewer than 10 cases of a class."""
    known = ~np.isnan(targets)
    if exclusive:
        scores, targets, known = (values[known.all(axis=1)] for values in (scores, targets, known))
    present, absent = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    least = present if exclusive else np.minimum(present, absent)
    if not len(scores) or least.min() < LEAST_CASES or not np.isfinite(scores).all():
        return None
    share = present / known.sum(axis=0)
    truth = np.nan_to_num(targets)
    sd = np.array([_TEMPERATURE_SD, *np.full(scores.shape[1], _BIAS_SD)])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        inverse, bias = np.exp(-parameters[0]), parameters[1:]
        calibrated = scores * inverse + bias
        if exclusive:
            p, value = softmax(calibrated, axis=1), -np.sum(truth * log_softmax(calibrated, axis=1))
        else:
            right = log_expit(np.where(truth > 0, calibrated, -calibrated))
            p, value = expit(calibrated), -np.sum(np.where(known, right, 0.0))
        slope = np.where(known, p - truth, 0.0)
        gradient = np.array([-np.sum(slope * scores) * inverse, *slope.sum(axis=0)]) + parameters / sd**2
        return float(value + np.sum((parameters / sd) ** 2) / 2), gradient

    best = minimize(loss, np.zeros(len(sd)), jac=True, method="L-BFGS-B").x
    prior = scores_of(share[None], exclusive=exclusive)[0]
    return Recalibration(float(np.exp(best[0])), best[1:], prior, _within(scores, targets, exclusive), exclusive)


def _within(scores: np.ndarray, targets: np.ndarray, exclusive: bool) -> float:
    """Mean over scores of their variance within a class."""
    if exclusive:
        means = (targets.T @ scores) / targets.sum(axis=0)[:, None]
        return float(np.sum((scores - targets @ means) ** 2) / (len(scores) - scores.shape[1]) / scores.shape[1])
    variances = []
    for score, target in zip(scores.T, targets.T):
        rest = [score[target == value] - score[target == value].mean() for value in (0, 1)]
        variances.append(np.sum(np.concatenate(rest) ** 2) / (sum(map(len, rest)) - 2))
    return float(np.mean(variances))
