"""RRT-MIL keeps the laws; the order of instances means something to it, so there is no law of permutation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import pytest

from mil_jax import aggregators
from mil_jax.aggregators.reembedding import reembedded
from tests.laws import law

SMALL = {
    "feature_dim": 8,
    "num_heads": 2,
    "cross_region_heads": 2,
    "epeg_kernel": 3,
    "attention_dim": 4,
    "representatives": 2,
}
# With 2 x 2 regions of each kind: fewer instances than regions, as many, one over, a square, one over, the bucket's edge.
SIZES = (1, 3, 4, 5, 9, 10, 16, 17, 36, 37)
OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "two_regions": {"region_num": 2, "cross_region_num": 2, "shortcut": True},
    "region_size": {"region_size": 2, "cross_region_num": 3, "epeg_2d": True, "cross_region_mlp": True},
    "one_region": {"region_num": 4, "min_region_num": 12, "cross_region": False, "feed_forward": True},
    "zero_tokens": {"region_num": 3, "cross_region_num": 3, "min_region_ratio": 1.0, "qkv_bias": False},
    "ppeg": {"region_num": 2, "cross_region_num": 2, "position": "ppeg", "epeg_kernel": 0},
    "peg": {"region_num": 2, "num_layers": 3, "position": "peg", "position_place": "between", "position_bias": False},
    "reweighting": {"region_num": 3, "region_reweighting": True, "num_best_regions": 2, "attention_gated": True},
}


def model(**options: Any) -> nn.Module:
    return aggregators.create("rrt", 2, **SMALL | options)


@pytest.mark.parametrize("promise", ["padding_train", "one_instance", "all_padding"])
def test_law(promise):
    law.check_aggregator(model(**OPTIONS["two_regions"]), (6,), promises=[promise], bare_sizes=(5,))


def test_law_behind_a_reembedding():
    r2t = {key: value for key, value in SMALL.items() if key != "attention_dim"} | {"region_num": 2}
    abmil = aggregators.create("abmil", 2, feature_dim=8, attention_dim=4)
    module = reembedded(abmil, {"name": "rrt", **r2t, "cross_region_num": 2})
    law.check_aggregator(module, (6,), promises=["padding_train", "all_padding"], bare_sizes=())


@pytest.mark.full
@pytest.mark.parametrize("options", OPTIONS)
def test_law_of_every_option(options):
    sizes = SIZES if options in ("published", "two_regions") else (1, 4, 17)
    promises = ("padding_train", "one_instance", "all_padding", "replicas")
    law.check_aggregator(model(**OPTIONS[options]), (6,), promises=promises, bare_sizes=sizes)
