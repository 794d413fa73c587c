"""Losses of survival models: discrete hazards (Zadeh & Schmid 2020, as Patch-GCN and HIPT have it) and Cox's partial likelihood (1972).

Discrete: h_k = sigmoid(z_k) is the hazard of bin k, S_k = prod_{j <= k} (1 - h_j). Everything is computed in logarithms, where 40 saturated
hazards do not underflow; clipped as in the reference, with the same gradient (zero below the clip).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mil_jax.types import Array

_LOG_EPSILON = math.log(1e-7)
_NEARLY_ONE = -1e-30  # log S above this: 1 - S is 0 in float32


def _log_parts(logits: Array, label: Array) -> tuple[Array, Array, Array]:
    """Logits [B, K], bins [B] -> (log S before the bin, log hazard in it, log S after it), each [B]."""
    log_survival = jnp.cumsum(-jax.nn.softplus(logits), axis=1)
    padded = jnp.pad(log_survival, ((0, 0), (1, 0)))  # S = 1 before the first bin

    def take(x: Array, at: Array) -> Array:
        return jnp.take_along_axis(x, at[:, None], axis=1)[:, 0]

    return take(padded, label), take(-jax.nn.softplus(-logits), label), take(padded, label + 1)


def discrete_nll(logits: Array, label: Array, event: Array, alpha: Array | float) -> Array:
    """Per bag [B]: u + (1 - alpha) k, with u of the events and k of the censored. logits [B, K]; label [B], the bin; event [B] of 0, 1."""
    before, hazard, after = _log_parts(logits, label)
    uncensored = -event * (jnp.maximum(before, _LOG_EPSILON) + jnp.maximum(hazard, _LOG_EPSILON))
    censored = -(1.0 - event) * jnp.maximum(after, _LOG_EPSILON)
    return uncensored + (1.0 - alpha) * censored


def discrete_ce(logits: Array, label: Array, event: Array, alpha: Array | float) -> Array:
    """Per bag [B]: the same with the cross entropy of having survived the bin in place of k: (1 - alpha) q + alpha u.

    Of a hazard so small that S rounds to 1 the reference is NaN; here -log(1 - S) is bounded.
    """
    before, hazard, after = _log_parts(logits, label)
    likelihood = -event * (jnp.log(jnp.exp(before) + math.exp(_LOG_EPSILON)) + jnp.maximum(hazard, _LOG_EPSILON))
    clipped = jnp.maximum(after, _LOG_EPSILON)
    died = jnp.log(-jnp.expm1(jnp.minimum(clipped, _NEARLY_ONE)))
    crossed = -(1.0 - event) * clipped - event * died
    return (1.0 - alpha) * crossed + alpha * likelihood


def cox(theta: Array, time: Array, event: Array, present: Array, *, ties: str = "breslow") -> Array:
    """Minus Cox's partial log likelihood, divided by the number of bags, as the field's code has it (not of events).

    theta, time, event, present: [B]; theta is the log hazard ratio, events are 0 or 1; a place that is not present is in no risk set,
    and its theta must be finite. ties: "breslow", or "efron" (the l-th of d tied deaths leaves l/d of their sum out of its risk set).
    The matrix of risk sets is [B, B]: sums of exponentials stay exact over any range of theta. 0 without an event.
    """
    dies = (event > 0) & present
    itself = jnp.eye(len(theta), dtype=bool)
    at_risk = ((time[None, :] >= time[:, None]) & present[None, :]) | itself
    log_risk = jax.nn.logsumexp(jnp.broadcast_to(theta, at_risk.shape), axis=1, where=at_risk)  # [B]
    if ties == "efron":
        tied = (time[None, :] == time[:, None]) & dies[None, :]
        earlier = jnp.tril(tied, -1).sum(axis=1)
        share = jnp.where(dies, earlier / jnp.maximum(tied.sum(axis=1), 1), 0.0)
        log_tied = jax.nn.logsumexp(jnp.broadcast_to(theta, tied.shape), axis=1, where=tied | itself)
        log_risk = log_risk + jnp.log1p(-share * jnp.exp(log_tied - log_risk))
    total = jnp.sum(jnp.where(dies, log_risk - theta, 0.0))
    return total / jnp.maximum(jnp.sum(present), 1)
