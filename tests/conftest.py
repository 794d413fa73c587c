"""Shared fixtures. Optional real data is read from the folder named by MIL_JAX_SHARED; its tests are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional real data (public MIL sets, published checkpoints, parity cases)."""
    folder = os.environ.get("MIL_JAX_SHARED", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MIL_JAX_SHARED names no folder of optional data")
    return Path(folder)
