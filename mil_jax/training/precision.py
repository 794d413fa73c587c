"""What `train.precision=auto` is: bfloat16 on a GPU for what was measured to lose no AUC by it, float32 everywhere else."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

AUTO = "auto"
# Trained plainly; in benchmarks/results/precision-*.json their AUC differs by less than 0.005 on average over 5 seeds.
MEASURED = ("abmil", "clam_sb", "dsmil", "transmil")


def chosen(config: ConfigDict) -> str:
    """`train.precision`, where it is "auto" the one that this device and aggregator get."""
    if config.train.precision != AUTO:
        return str(config.train.precision)
    plain = not config.strategy.name and not config.reembed.name
    measured = plain and config.aggregator.name in MEASURED
    return "bfloat16" if measured and jax.default_backend() == "gpu" else "float32"
