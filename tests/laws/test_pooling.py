"""Mean and max pooling keep the laws, with every way of choosing instances."""

from __future__ import annotations

from typing import Any

import pytest

from mil_jax import aggregators
from mil_jax.aggregators import pooling
from tests.laws import law

VARIANTS = (*pooling.MEAN_VARIANTS, *pooling.MAX_VARIANTS)
NUM_OUTPUTS = {"clam_mil_fc": 2}


def small(variant: str) -> Any:
    name, fields = aggregators.variants()[variant]
    return aggregators.create(name, NUM_OUTPUTS.get(variant, 3), **{**fields, "feature_dim": 16})


@pytest.mark.parametrize("promise", law.PROMISES)
@pytest.mark.parametrize("variant", ["mean_pooling", "max_pooling"])
def test_law(variant, promise):
    law.check_aggregator(small(variant), (12,), promises=[promise])


@pytest.mark.parametrize("variant", ["clam_mil_fc", "clam_mil_fc_mc"])
def test_padding_is_never_the_chosen_instance(variant):
    law.check_aggregator(small(variant), (12,), promises=["padding_train"], bare_sizes=())


@pytest.mark.full
@pytest.mark.parametrize(("name", "fields"), [("mean_pooling", {}), ("max_pooling", {"choose": "feature"})])
def test_law_without_feature_layer(name, fields):
    law.check_aggregator(aggregators.create(name, 3, feature_layer="none", dropout=0.0, **fields), (12,))


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
def test_law_of_every_variant(variant):
    law.check_aggregator(small(variant), (12,), bare_sizes=(1, 2, 7, 15, 16, 17))
