"""TransMIL keeps the laws with few landmarks and many, on full squares and beside them; the order of instances matters to it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import pytest

from mil_jax import aggregators
from tests.accelerator import forms_of_accelerators
from tests.laws import law

LANDMARKS = 6
PROMISES = [promise for promise in law.PROMISES if promise not in ("permutation", "one_instance")]
# Sequences (a class token and a full square) shorter and longer than the landmarks; 16 = the smaller bucket's edge.
SQUARING_SIZES = (1, 4, 5, 16)
# With n + 1 tokens: below, equal to and above the landmarks; perfect squares and one over; the position layer's 7 columns at 37.
PLAIN_SIZES = (1, 4, 5, 6, 16, 17, 37)


def small(**fields: Any) -> nn.Module:
    settings = {"feature_dim": 16, "num_heads": 2, "num_landmarks": LANDMARKS, "residual_kernel": 5, "dropout": 0.25}
    return aggregators.create("transmil", 2, **{**settings, **fields})


@pytest.mark.parametrize("promise", ["padding_train", "all_padding", "replicas"])
def test_law(promise):
    law.check_aggregator(small(), (12,), promises=[promise], bare_sizes=(5,))


@pytest.mark.full
def test_padding_without_squaring():
    law.check_aggregator(small(squaring=False), (12,), promises=["padding_train"], bare_sizes=())


@pytest.mark.full
@pytest.mark.parametrize(
    ("fields", "bare_sizes"),
    [
        ({}, SQUARING_SIZES),
        ({"num_landmarks": 40, "head_dim": 12}, SQUARING_SIZES),
        ({"squaring": False}, PLAIN_SIZES),
        ({"squaring": False, "position": "peg", "input_norm": True}, PLAIN_SIZES),
        ({"position": "none", "feature_activation": "gelu"}, SQUARING_SIZES),
    ],
)
def test_law_of_every_form(fields, bare_sizes):
    law.check_aggregator(small(**fields), (12,), promises=PROMISES, bare_sizes=bare_sizes)


@pytest.mark.full
def test_law_of_the_forms_of_accelerators():
    with forms_of_accelerators():
        law.check_aggregator(small(), (12,), promises=["padding_train", "all_padding"], bare_sizes=(5,))
