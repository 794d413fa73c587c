"""What JAX is told before it is first used."""

from __future__ import annotations

import subprocess
import sys

USE = "import jax; from mil_jax.engine.runtime import use_one_device_per_core as use\n"


def devices(code: str) -> int:
    """The number of devices at the end of `code`, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{USE}{code}\nprint(jax.device_count())"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_where_jax_was_used_already_its_devices_stay():
    assert devices("jax.numpy.zeros(1)\nuse()") == devices("")
