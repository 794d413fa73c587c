"""HIPT keeps the laws on regions in which tiles are missing, and so does the loss of its guided form."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag, Prediction
from mil_jax.tasks.classification import Classification
from tests.laws import law, training_loss

TASK = Classification(("a", "b"))
TILES, WIDTH = 4, 6
SMALL: dict[str, dict[str, Any]] = {
    "hipt": {"region_dim": 8, "region_depth": 1, "region_heads": 2, "table_side": 3, "hidden_dim": 8, "num_heads": 2},
    "hipt_none": {"hidden_dim": 8},
}


class MissingTiles(nn.Module):
    """`inner` on regions of which some have one tile, some all; there is NaN where a tile is missing, garbage where a region is."""

    inner: nn.Module

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        number = bag.coords.sum(axis=1)[:, None] // 256
        there = jnp.arange(TILES) <= number % TILES
        features = jnp.where(there[..., None] | ~bag.mask[:, None, None], bag.features, jnp.nan)
        return self.inner(bag.replace(features=features, part_mask=there), train=train)

    @nn.nowrap
    def training_loss(self, *arguments: Any) -> Any:
        return self.inner.training_loss(*arguments)


def small(name: str, **fields: Any) -> nn.Module:
    return aggregators.create(name, TASK.num_outputs, **{**SMALL[name], **fields})


@pytest.mark.parametrize(
    "promise", ["padding_train", *(pytest.param(name, marks=pytest.mark.full) for name in ("replicas", "all_padding"))]
)
def test_law(promise):
    law.check_aggregator(
        MissingTiles(small("hipt", mask_parts=True)), (TILES, WIDTH), promises=[promise], bare_sizes=(1,)
    )


def test_law_without_transformers():
    law.check_aggregator(MissingTiles(small("hipt_none")), (TILES, WIDTH), promises=["padding_train"], bare_sizes=(1,))


@pytest.mark.full
def test_the_guided_loss_is_exact_under_padding():
    run = training_loss.run(MissingTiles(small("hipt", guided=True)), TASK, np.int32(1), (TILES, WIDTH), train=True)
    law.check_padding(run, (TILES, WIDTH), bare_sizes=())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "fields", "shape"),
    [
        ("hipt", {"region_depth": 2}, (TILES, WIDTH)),
        ("hipt", {"region_depth": 2, "mask_parts": True, "guided": True}, (TILES, WIDTH)),
        ("hipt_none", {}, (TILES, WIDTH)),
        ("hipt", {"region_encoder": "none"}, (WIDTH,)),
        ("hipt_none", {"one_region": True}, (WIDTH,)),
    ],
)
def test_law_of_every_form(name, fields, shape):
    module = small(name, **fields)
    law.check_aggregator(MissingTiles(module) if len(shape) == 2 else module, shape, bare_sizes=(1, 2, 7, 8, 9, 16))
