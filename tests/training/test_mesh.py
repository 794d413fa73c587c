"""The same training on one device, on eight, and by two processes: equal to round-off, whatever the number of runs."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import train
from mil_jax.errors import ConfigError
from mil_jax.training import processes
from mil_jax.training.run_folder import RunFolder
from tests.commands import run
from tests.training.fit_alone import ROOT, SECONDS, Job, fit_alone, fit_here, free_port

TOLERANCE = 1e-5


def _assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, array in one.items():
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if "['attention_w']['bias']" not in name:
            np.testing.assert_allclose(array, other[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def test_eight_devices_equal_those_of_this_process(tmp_path):
    """Five runs on four pairs of devices, each of which shares a batch."""
    job = Job(str(tmp_path / "8.npz"), devices=8, epochs=2, settings={"batch_size": 4, "batch_devices": 2})
    (eight,) = fit_alone(job)
    _assert_close(eight, fit_here(dataclasses.replace(job, settings={"batch_size": 4})))


@pytest.mark.full
@pytest.mark.parametrize(
    ("replicas", "settings"),
    [
        (5, {}),
        (11, {}),
        (25, {}),
        (11, {"replica_axis": "vmap"}),
        (2, {"batch_size": 4, "batch_devices": 4}),
        (5, {"batch_size": 4, "batch_devices": 2, "replica_axis": "vmap"}),
        (3, {"batch_size": 6, "batch_devices": 4}),  # 4 does not divide 6: two devices share
    ],
)
def test_eight_devices_equal_one_also_where_runs_do_not_divide(tmp_path, replicas, settings):
    """An epoch has some 20 steps. Eight devices hold no, one or several runs each."""
    jobs = [
        Job(str(tmp_path / f"{devices}.npz"), devices=devices, replicas=replicas, settings=settings)
        for devices in (1, 8)
    ]
    _assert_close(*fit_alone(*jobs))


@pytest.mark.full
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_checkpoint_is_gone_on_with_on_another_number_of_devices(tmp_path, before, after):
    def job(name: str, devices: int, **more) -> Job:
        return Job(str(tmp_path / name), devices=devices, replicas=11, epochs=3, **more)

    folder = str(tmp_path / "checkpoints")
    undisturbed, stopped = fit_alone(
        job("undisturbed.npz", before), job("stopped.npz", before, checkpoints=folder, stop_after=25)
    )
    assert not stopped
    (resumed,) = fit_alone(job("resumed.npz", after, checkpoints=folder))
    _assert_close(resumed, undisturbed)


def _settings(run: Path, cache: Path, *flags: str) -> list[str]:
    """A short training of the embedded digits."""
    settings = {
        "run": run,
        "aggregator.feature_dim": 8,
        "aggregator.attention_dim": 4,
        "data.cache": cache,
        "data.max_shapes": 1,
        "data.filter": "slide_id.str.endswith('0') or slide_id.str.endswith('1')",  # 120 of the 600 bags
        "data.min_matched": 0.1,
        "train.checkpoint_seconds": 0,
    }
    return ["--config=configs/abmil.py", *(f"--config.{name}={value}" for name, value in settings.items()), *flags]


class _Command:
    """A training by several processes of one device each."""

    def __init__(self, run: Path, cache: Path, count: int, *flags: str) -> None:
        port = free_port()
        self.processes = []
        for number in range(count):
            together = {"coordinator": f"localhost:{port}", "num_processes": count, "process_id": number}
            mine = [f"--config.distributed.{name}={value}" for name, value in together.items()] if count > 1 else []
            command = [sys.executable, "-m", "mil_jax.train", *_settings(run, cache, *flags), *mine]
            self.processes.append(
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )

    def end(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each. JAX catches SIGTERM, so a process that hangs is killed."""
        try:
            said = [process.communicate(timeout=SECONDS) for process in self.processes]
            return [(process.returncode, out, err) for process, (out, err) in zip(self.processes, said, strict=True)]
        finally:
            for process in self.processes:
                process.kill()


def _assert_same_result(one: Path, other: Path) -> None:
    ours, theirs = (RunFolder.require_complete(folder) for folder in (one, other))
    tables = [folder.read_table("predictions.csv") for folder in (ours, theirs)]
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-4)
    assert [row["epoch"] for row in ours.read_metrics()] == [row["epoch"] for row in theirs.read_metrics()]


def test_two_processes_train_as_one_and_the_first_alone_writes_and_speaks(tmp_path, capsys):
    flags = ("--config.train.epochs=2",)
    two = _Command(tmp_path / "two", tmp_path / "cache", 2, *flags)
    (code, out, err), (other_code, other_out, other_err) = two.end()
    assert (code, other_code) == (0, 0), err + other_err
    assert run(train.main, _settings(tmp_path / "alone", tmp_path / "cache", *flags), capsys).code == 0
    _assert_same_result(tmp_path / "two", tmp_path / "alone")
    assert "Everything is in" in out
    assert not [line for line in other_out.splitlines() if "Gloo" not in line]
    assert RunFolder.open(tmp_path / "two").read_json("environment.json")["sessions"][0]["processes"] == 2


@pytest.mark.full
def test_a_signal_to_one_of_two_processes_stops_both_and_one_process_goes_on(tmp_path):
    flags = ("--config.train.epochs=150",)
    assert _Command(tmp_path / "alone", tmp_path / "cache", 1, *flags).end()[0][0] == 0
    two = _Command(tmp_path / "two", tmp_path / "cache", 2, *flags)
    while not (tmp_path / "two" / "metrics.jsonl").exists() and two.processes[1].poll() is None:
        time.sleep(0.05)
    two.processes[1].send_signal(signal.SIGTERM)
    assert [code for code, _, _ in two.end()] == [143, 143]
    assert not RunFolder.open(tmp_path / "two").is_complete
    assert _Command(tmp_path / "two", tmp_path / "cache", 1, *flags, "--resume").end()[0][0] == 0
    _assert_same_result(tmp_path / "two", tmp_path / "alone")


@pytest.mark.full
def test_what_the_first_process_refuses_ends_all(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").touch()
    first, second = _Command(tmp_path / "taken", tmp_path / "cache", 2).end()
    assert (first[0], second[0]) == (2, 2)
    assert "is no run folder" in first[2]
    assert "stopped because the first one did" in second[2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("localhost", 2, 0), "distributed.coordinator=localhost must be HOST:PORT"),
        (("localhost:1234", 2, 2), "distributed.process_id=2 must be one of 0 to"),
        (("localhost:1234", 0, -1), "distributed.process_id=-1 must be one of 0 to"),
        (("", 2, 0), "need distributed.coordinator"),
    ],
)
def test_processes_that_cannot_be_started_are_said(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        processes.start(*settings)


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (f"'localhost:{free_port()}', 2, 1", "not all processes of distributed.coordinator"),
        ("'auto', 0, -1", "distributed.coordinator=auto cannot be used"),
    ],
)
def test_other_processes_that_are_not_there_are_said(settings, sentence):
    lines = (
        "from mil_jax.console import run_command; from mil_jax.training import processes; processes.CONNECT_SECONDS = 3; "
        f"run_command(lambda _: processes.start({settings}) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert sentence in ended.stderr
