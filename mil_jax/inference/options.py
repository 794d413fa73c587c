"""What is said of a cohort that a trained run is to score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """Where one cohort lies. settings: {"data.id_column": "slide"}."""

    source: str
    folder: str
    labels: str = ""
    name: str = ""
    instance_labels: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
