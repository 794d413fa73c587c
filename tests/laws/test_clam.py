"""CLAM keeps the laws, and so does its loss: with fewer than k, k, and 2k instances too. Several branches stand for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.tasks.classification import Classification
from tests.laws import law, training_loss

TASK = Classification(("a", "b", "c"))
VARIANTS = ("clam_sb", "clam_mb", "mhim_clam_sb", "milab_clam_sb", "pathgene_clam_sb")
K = 3
SIZES = (1, K - 1, K, K + 1, 2 * K, 15, 16, 17)


def small(variant: str, **settings: Any) -> Any:
    name, fields = aggregators.variants()[variant]
    widths = {"feature_dim": 16, "attention_dim": 8, "num_sampled": K}
    return aggregators.create(name, TASK.num_outputs, **{**fields, **widths, **settings})


@pytest.mark.parametrize("promise", law.PROMISES)
def test_law(promise):
    law.check_aggregator(small("clam_mb"), (12,), promises=[promise], bare_sizes=(1,))


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("clam_sb", {"subtyping": True}), ("clam_mb", {"instance_loss": "cross_entropy", "gated": False})],
)
def test_the_loss_is_exact_under_padding(variant, settings):
    run = training_loss.run(small(variant, **settings), TASK, np.int32(1), (12,), train=True)
    law.check_padding(run, (12,), bare_sizes=(K - 1,))


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
def test_law_of_every_variant(variant):
    law.check_aggregator(small(variant), (12,), bare_sizes=SIZES)


@pytest.mark.full
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("instance_loss", ["svm", "cross_entropy"])
@pytest.mark.parametrize("variant", ["clam_sb", "clam_mb"])
def test_every_form_of_the_loss_is_exact_under_padding(variant, instance_loss, subtyping):
    module = small(variant, instance_loss=instance_loss, subtyping=subtyping, bag_loss="svm")
    law.check_padding(training_loss.run(module, TASK, np.int32(1), (12,), train=True), (12,), bare_sizes=SIZES)
