"""Survival cases: bins, losses with gradients, curves and metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.tasks.metrics import survival as measures
from mil_jax.tasks.metrics.kaplan_meier import censoring, curve, kaplan_meier, log_rank
from mil_jax.tasks.survival import bin_edges, bin_of
from mil_jax.tasks.survival_losses import cox, discrete_ce, discrete_nll
from tests.parity.adapters.base import Answer
from tests.parity.case import Case

GIVEN = (
    *("time", "event", "censored", "label", "x"),
    *("risk", "high", "group", "tau", "n_train", "grid", "surv_pred"),
)


def _bins(case: Case) -> dict[str, Any]:
    time, censored = case.arrays["out/time"], case.arrays["out/censored"]
    values: dict[str, Any] = {}
    for bins in {int(name.rsplit("_", 1)[1]) for name in case.arrays if name.startswith("out/edges_")}:
        edges = bin_edges(time, 1 - censored, bins)
        values |= {f"edges_{bins}": edges, f"label_{bins}": bin_of(time, edges)}
    return values


def _discrete(case: Case) -> dict[str, Any]:
    z = 2 * case.input("logits")
    saturated = z.copy()
    saturated[4], saturated[5] = 40.0, -40.0
    label, event = jnp.asarray(case.arrays["out/label"]), 1.0 - jnp.asarray(case.arrays["out/censored"])
    log_survival = jnp.cumsum(-jax.nn.softplus(jnp.asarray(saturated)), axis=1)
    values: dict[str, Any] = {"survival": jnp.exp(log_survival)}
    values |= {"hazards": jax.nn.sigmoid(saturated), "risk": -jnp.exp(log_survival).sum(axis=1)}
    for name, loss, logits in (("nll", discrete_nll, saturated), ("ce", discrete_ce, z)):
        for alpha in case.config["alphas"]:
            per_bag = _per_bag(loss, label, event, alpha)
            values[f"per_{name}_{alpha}"] = per_bag(logits)
            value, gradient = jax.value_and_grad(lambda x, per_bag=per_bag: jnp.mean(per_bag(x)))(jnp.asarray(logits))
            values |= {f"{name}_{alpha}": value, f"grad_{name}_{alpha}": gradient}
    return values


def _per_bag(loss: Callable[..., Any], label: Any, event: Any, alpha: float) -> Callable[[Any], Any]:
    return lambda logits: loss(jnp.asarray(logits), label, event, alpha)


def _cox(case: Case) -> dict[str, Any]:
    time, event = jnp.asarray(case.arrays["out/time"]), jnp.asarray(case.arrays["out/event"], jnp.float32)
    present = jnp.ones(len(time), bool)
    theta = jnp.asarray(case.input("theta"))
    loss, gradient = jax.value_and_grad(lambda x: cox(x, time, event, present))(theta)
    values: dict[str, Any] = {"theta": theta, "reference_cox": loss, "grad_reference_cox": gradient}
    x = jnp.asarray(case.arrays["out/x"])
    for ties in ("breslow", "efron"):
        values[f"loglik_{ties}"] = -len(time) * cox(theta, time, event, present, ties=ties)

        def log_likelihood(beta: Any, ties: str = ties) -> Any:
            return -cox(x @ beta, time, event, present, ties=ties) * len(time)

        gradient_of, curvature = jax.jit(jax.grad(log_likelihood)), jax.jit(jax.hessian(log_likelihood))
        beta = jnp.zeros(x.shape[1])
        for _ in range(20):  # Newton
            beta = beta - jnp.linalg.solve(curvature(beta), gradient_of(beta))
        values |= {f"coef_{ties}": beta, f"loglik_at_coef_{ties}": log_likelihood(beta)}
    return values


def _metrics(case: Case) -> dict[str, Any]:
    given = {name.removeprefix("out/"): array for name, array in case.arrays.items()}
    time, event, risk = given["time"], given["event"], given["risk"]
    values: dict[str, Any] = {}
    once, nowhere = np.ones((1, len(time))), np.zeros(len(time))
    everyone = measures.Cases(time, event, risk, nowhere)
    harrell = measures.concordance(everyone, once).harrell[0]
    values |= {"cindex": harrell, "cindex_lifelines": harrell, **_pair_counts(everyone)}
    first = int(given["n_train"])
    censored = censoring(time[:first], event[:first])
    test = measures.Cases(time[first:], event[first:], risk[first:], nowhere[first:])
    weights, grid = once[:, first:], given["grid"]
    values["cindex_ipcw"] = measures.concordance(test, weights, censored, float(given["tau"])).uno[0]
    scores = measures.brier(test, given["surv_pred"], weights, grid, censored)
    auc = measures.dynamic_auc(test, weights, grid, censored)
    values |= {"brier": scores[0], "ibs": measures.integrated(scores, grid)[0]}
    values |= {"dyn_auc": auc.at[0], "mean_dyn_auc": auc.mean[0]}
    one = curve(time, event)
    values |= {
        "km_time": one.times,
        "km_surv": one.survival,
        "km_median": one.median,
        "na_cumhaz": one.cumulative_hazard,
    }
    values["km_ci"] = np.stack([one.low, one.high], axis=1)
    values |= {"censor_G_time": censored.times, "censor_G": censored.values[0]}
    plain = kaplan_meier(time[:first], ~event[:first])
    values |= {"censor_km_time": np.r_[0.0, plain.times], "censor_km_surv": np.r_[1.0, plain.values[0]]}
    two, three = log_rank(time, event, given["high"]), log_rank(time, event, given["group"])
    values |= {"logrank_chi2": two.chi2, "logrank_p": two.p, "logrank3_chi2": three.chi2, "logrank3_p": three.p}
    return values


def _pair_counts(cases: measures.Cases) -> dict[str, int]:
    """Of the comparable pairs; tied_time: of an event and a censored case at one time."""
    ((_, comparable, wins),) = measures._pairs(cases)
    tied = cases.time[cases.event][:, None] == cases.time[~cases.event]
    return {
        "concordant": int((wins == 1).sum()),
        "tied_risk": int((wins == 0.5).sum()),
        "discordant": int(comparable.sum() - (wins > 0).sum()),
        "tied_time": int(tied.sum()),
    }


class _Adapter:
    def __init__(self, values: Callable[[Case], dict[str, Any]]) -> None:
        self.values = values

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        values = {f"out/{name}": value for name, value in self.values(case).items()}
        given = {f"out/{name}" for name in GIVEN} - set(values)
        return Answer(values, dict.fromkeys(given, "given, not computed"))


ADAPTERS = {
    ("survival", "bins"): _Adapter(_bins),
    ("survival", "discrete"): _Adapter(_discrete),
    ("survival", "cox"): _Adapter(_cox),
    ("survival", "metrics"): _Adapter(_metrics),
}
