"""ABMIL keeps the laws in every published variant; by default a plain, a gated and an image form stand for all."""

from __future__ import annotations

from typing import Any

import pytest

from mil_jax import aggregators
from mil_jax.aggregators import abmil
from tests.laws import law

REPRESENTATIVES = ("mhim_gated", "mhim_pure_attn")
IMAGES = (16, 16, 1)


def small(variant: str) -> tuple[Any, tuple[int, ...]]:
    """The variant with small widths, and the shape of its instances."""
    fields = {**abmil.VARIANTS[variant], "feature_dim": 16}
    if fields["attention_dim"]:
        fields["attention_dim"] = 8
    return aggregators.create("abmil", 2, **fields), IMAGES if fields.get("feature_layer") == "lenet" else (12,)


@pytest.mark.parametrize("promise", law.PROMISES)
@pytest.mark.parametrize("variant", REPRESENTATIVES)
def test_law(variant, promise):
    law.check_aggregator(*small(variant), promises=[promise])


def test_padding_with_images():
    law.check_aggregator(*small("ilse_gated"), promises=["padding"], bare_sizes=())


@pytest.mark.full
@pytest.mark.parametrize("variant", abmil.VARIANTS)
def test_law_of_every_variant(variant):
    law.check_aggregator(*small(variant), bare_sizes=(1, 2, 7, 15, 16, 17))
