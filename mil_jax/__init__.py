"""Multiple-instance learning on whole slide images, in JAX.

    import mil_jax as mj

    run = mj.fit(features="features/", labels="labels.csv", target="subtype", config="abmil")

What this module names is public; what lies below may change between versions. Names are imported when they are first used, so that
`import mil_jax` takes no time.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "mil_jax.api": ("Run", "fit", "load"),
    "mil_jax.bags": ("Bag", "Prediction"),
    "mil_jax.aggregators.abmil": ("ABMIL",),
    "mil_jax.aggregators.base": ("Aggregator",),
    "mil_jax.aggregators.clam": ("ClamMB", "ClamSB"),
    "mil_jax.aggregators.dsmil": ("DSMIL",),
    "mil_jax.aggregators.dtfd": ("DTFD",),
    "mil_jax.aggregators.hipt": ("HIPT",),
    "mil_jax.aggregators.hipt_none": ("HIPTNone",),
    "mil_jax.aggregators.patch_gcn": ("PatchGCN",),
    "mil_jax.aggregators.pooling": ("MaxPooling", "MeanPooling"),
    "mil_jax.aggregators.rrt": ("RRTMIL",),
    "mil_jax.aggregators.transmil": ("TransMIL",),
    "mil_jax.tasks": (
        "Classification",
        "MultiClass",
        "MultiLabel",
        "Ordinal",
        "PathGene",
        "Regression",
        "Survival",
        "Task",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mil_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
