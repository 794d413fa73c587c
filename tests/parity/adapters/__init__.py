"""How this project answers each kind of parity case: one small adapter per method, found by (method, variant) of the
case.

An adapter module defines `ADAPTERS: dict[tuple[str, str], Adapter]`. To cover a new method, add a module here;
nothing else changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from tests.parity.adapters.base import Adapter, Answer
from tests.parity.case import Case

__all__ = ["Adapter", "Answer", "find"]


def find(case: Case) -> Adapter | None:
    """The adapter for a case, or None when its method is not covered."""
    return _adapters().get((case.method, case.variant))


@cache
def _adapters() -> dict[tuple[str, str], Adapter]:
    found: dict[tuple[str, str], Adapter] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            found.update(importlib.import_module(f"{__name__}.{module.name}").ADAPTERS)
    return found
