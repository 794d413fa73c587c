"""What leaves the repository is enough: the wheel alone, away from the sources, trains with the installed configs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.skips import needs

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the built wheel; dependencies are those of this environment."""
    needs("build")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("mil_jax-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    # A folder named in a .pth file comes after the environment's own, and .pth files in it (editable installs) are not read.
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(*command: str | Path, cwd: Path | None = None, cache: Path | None = None) -> str:
    """What a command prints; fails with it when the command fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_trains_with_an_installed_config_from_an_empty_folder(python, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    where = run(python, "-c", "import mil_jax; print(mil_jax.__file__)", cwd=empty)
    assert str(python.parent.parent) in where
    arguments = ["--config", "configs/abmil.py", "--config.train.epochs=1"]
    printed = run(python, "-m", "mil_jax.train", *arguments, cwd=empty, cache=tmp_path / "cache")
    assert "mean of folds" in printed
    assert (empty / "runs" / "abmil" / "summary.md").is_file()


def test_the_wheel_brings_the_shard_writer(python, tmp_path):
    assert "--features" in run(python, "-m", "data_prep.shard", "--help", cwd=tmp_path)
