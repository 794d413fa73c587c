"""DSMIL keeps the laws in every published variant, and so does the loss of both streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.aggregators import dsmil
from mil_jax.tasks.multilabel import MultiLabel
from tests.laws import law, training_loss

TASK = MultiLabel(("a", "b", "c"))
TARGET = np.array([1.0, 0.0, np.nan], np.float32)
SIZES = (1, 2, 7, 15, 16, 17)
DROPOUTS = {"value": "relu", "value_dropout": 0.25, "instance_dropout": 0.3}


def small(variant: str, **settings: Any) -> Any:
    name, fields = aggregators.variants()[variant]
    return aggregators.create(name, TASK.num_outputs, **{**fields, "feature_dim": 16, "query_dim": 8, **settings})


@pytest.mark.parametrize("promise", law.PROMISES)
def test_law(promise):
    law.check_aggregator(small("official"), (12,), promises=[promise], bare_sizes=(1,))


def test_the_loss_is_exact_under_padding_with_every_dropout():
    run = training_loss.run(small("mhim_milnet", max_weight=0.5, **DROPOUTS), TASK, TARGET, (12,), train=True)
    law.check_padding(run, (12,), bare_sizes=(7,))


@pytest.mark.full
@pytest.mark.parametrize("variant", dsmil.VARIANTS)
def test_law_of_every_variant(variant):
    law.check_aggregator(small(variant), (12,), bare_sizes=SIZES)


@pytest.mark.full
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("nonlinear_query", [False, True])
@pytest.mark.parametrize("value", ["identity", "relu", "linear"])
def test_every_form_of_the_loss_is_exact_under_padding(value, nonlinear_query, train):
    settings = {
        "value": value,
        "nonlinear_query": nonlinear_query,
        "prediction": "mean_probability",
        "loss": "prediction",
    }
    module = small("official", instance_dropout=0.3, **settings)
    law.check_padding(training_loss.run(module, TASK, TARGET, (12,), train), (12,), bare_sizes=SIZES)
