"""Cases of PathGene that are no model: its optimiser and its metrics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import metrics as sklearn_metrics

from mil_jax.strategies.optimizers import OptimizerSettings, make
from mil_jax.tasks.metrics.classification import single_label
from mil_jax.tasks.metrics.pathgene import decisions, pathgene_metrics
from tests.parity.adapters.base import Answer
from tests.parity.case import Case


class LookaheadRAdam:
    """A trajectory with given gradients and learning rates."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        settings = OptimizerSettings(
            "lookahead_radam",
            b1=config["betas"][0],
            b2=config["betas"][1],
            eps=config["eps"],
            lookahead_steps=config["k"],
            lookahead_alpha=config["alpha"],
        )
        optimizer = make(settings)
        weight_decay = config["weight_decay"]

        def step(carry, row):
            params, state = carry
            gradient, lr = row
            updates, state = optimizer.update(gradient, state, params, lr=lr, weight_decay=weight_decay)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.asarray(case.input("w0"))
        rows = (jnp.asarray(case.input("grads")), jnp.asarray(case.arrays["out/lrs"], jnp.float32))
        _, trajectory = jax.lax.scan(step, (start, optimizer.init(start)), rows)
        return Answer({"out/trajectory": trajectory}, {"out/lrs": "the learning rates are given, not computed"})


class Metrics:
    """The metrics of its protocol, and the ordinary ones on the same scores."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        scores, label = case.arrays["out/scores"].astype(np.float64), case.arrays["out/label"]
        classes = scores.shape[1]
        values = pathgene_metrics(scores, label)
        targets, _, decided = decisions(scores, label)
        values["confusion"] = sklearn_metrics.multilabel_confusion_matrix(targets, decided)
        ordinary = single_label(scores, label)
        argmax = scores.argmax(axis=1)
        values["argmax_accuracy"] = ordinary["accuracy"]
        values["argmax_macro"] = [ordinary[name] for name in ("precision", "recall", "f1")]
        values["argmax_confusion"] = sklearn_metrics.confusion_matrix(label, argmax, labels=range(classes))
        values["macro_ovr_auc"] = ordinary["auc"]
        given = dict.fromkeys(("out/scores", "out/label"), "given, not computed")
        return Answer({f"out/{name}": value for name, value in values.items()}, given)


ADAPTERS = {
    ("pathgene", "lookahead_radam"): LookaheadRAdam(),
    **{("pathgene", f"metrics_c{classes}"): Metrics() for classes in range(2, 11)},
}
