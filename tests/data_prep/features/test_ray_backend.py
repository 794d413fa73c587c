"""Encoding on a Ray cluster of two workers on this machine: the same files, also when a worker is killed in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import needs

needs("ray")

from data_prep import encode, tile  # noqa: E402
from data_prep.demo_slides import draw_slide, write_slide  # noqa: E402
from data_prep.features import ray_backend  # noqa: E402
from data_prep.jobs import Slide  # noqa: E402
from tests.commands import contents, run  # noqa: E402
from tests.data_prep.test_encode import RANDOM  # noqa: E402

pytestmark = pytest.mark.full


class Dying(ray_backend.Encoder):
    """Kills its own process at the first slide that any worker is given."""

    def encode(self, slide: Slide):
        flag = Path(self.settings.work) / "died"
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(slide)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four slides with tiles, and their features by one process."""
    folder = tmp_path_factory.mktemp("ray")
    for number in range(4):
        write_slide(folder / "slides", f"s{number}", draw_slide(number, 1024, 1024), 0.5)
    arguments = ["--slides", str(folder / "slides"), "--out", str(folder / "work"), "--mpp=0.5", "--tile=128"]
    assert tile.main([*arguments, "--workers=1"]) == 0
    shutil.copytree(folder / "work", folder / "alone")
    command = [sys.executable, "-m", "data_prep.encode", f"--work={folder / 'alone'}", *RANDOM]
    subprocess.run(command, check=True)  # with the devices of a command, as the workers have, not those of the tests
    return folder


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "a worker is killed"])
def test_two_workers_make_the_files_of_one_process(folder, tmp_path, capsys, monkeypatch, killed):
    work = tmp_path / "work"
    shutil.copytree(folder / "work", work)
    if killed:
        monkeypatch.setattr(ray_backend, "Encoder", Dying)
    ended = run(encode.main, [f"--work={work}", *RANDOM, "--engine=ray", "--workers=2", "--threads=1"], capsys)
    assert ended.code == 0, ended.out + ended.err
    assert (work / "died").exists() == killed
    assert contents(work / "features") == contents(folder / "alone" / "features")


def test_weights_that_do_not_fit_are_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "w.npz").write_bytes(b"nothing")
    own = [argument for argument in RANDOM if not argument.startswith("--weights")]
    arguments = [f"--work={folder / 'work'}", *own, f"--weights={tmp_path / 'w.npz'}", "--engine=ray", "--workers=2"]
    ended = run(encode.main, arguments, capsys)
    assert ended.code == 2
    assert "w.npz: cannot be read" in ended.err
