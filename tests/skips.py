"""What tests may be skipped for, in sentences that say how to have them run, and how many were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

_NAMED = {  # module -> how people call it, the extra that brings it
    "torch": ("PyTorch", "torch"),
    "transformers": ("transformers", "test"),
    "openpyxl": ("openpyxl", "test"),
    "pyarrow": ("pyarrow", "test"),
    "ray": ("Ray", "ray"),
    "jax_plugins.xla_cuda13": ("JAX for CUDA 13", "gpu"),
    "tensorflow": ("TensorFlow", "test-tensorflow"),
    "lifelines": ("lifelines", "test-survival"),
    "sksurv.metrics": ("scikit-survival", "test-survival"),
    "build": ("build", "dev"),
}


def needs(module: str) -> Any:
    """The module; where it is not installed the test, or the file that asks at its top, is skipped, and it is said how to get it."""
    name, extra = _NAMED[module]
    return pytest.importorskip(module, reason=f"{name} is not installed: pip install -e '.[{extra}]'")


def counted(reports: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """One line for each reason: how many tests, and how many files as a whole, were skipped for it; most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in reports:
        what = "file" if isinstance(report, pytest.CollectReport) else "test"
        counts[report.longrepr[2].removeprefix("Skipped: "), what] += 1
    return [
        f"skipped: {number} {what}{'s' * (number != 1)} because {reason}"
        for (reason, what), number in counts.most_common()
    ]
