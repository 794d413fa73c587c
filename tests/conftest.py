"""Shared fixtures. Optional real data is read from the folder named by MIL_JAX_SHARED; its tests are skipped without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from mil_jax.engine.runtime import use_one_device_per_core
from tests.skips import counted

use_one_device_per_core()
jax.config.update(
    "jax_default_matmul_precision", "highest"
)  # else a GPU would be asked for equality in TF32; a CPU knows no other


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A check that did not run is not a check that passed."""
    for line in counted(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional real data (public MIL sets, published checkpoints, parity cases)."""
    folder = os.environ.get("MIL_JAX_SHARED", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MIL_JAX_SHARED names no folder of optional real data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests build the same small programs again and again: each is compiled once a session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True)
def forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Long checks compile hundreds of programs each, and a process may hold only so many memory maps."""
    yield
    if request.node.get_closest_marker("full"):
        jax.clear_caches()
