"""What a run was computed with: versions, devices and the commit of the project; no host name, user or path."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import mil_jax
from mil_jax.machine import usable_cores

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "scikit-learn", "pandas", "h5py")


def describe_environment() -> dict[str, Any]:
    """One session of a run, as JSON types. Starts JAX's backend."""
    import jax

    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "mil_jax": mil_jax.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": project_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": usable_cores(),
        "devices": {"backend": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
    }


def project_commit() -> str | None:
    """The git commit of the source mil_jax runs from, "+changes" added when files differ; None for an installed
    package.
    """
    source = Path(mil_jax.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    try:
        commit = _git(source, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(source, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
