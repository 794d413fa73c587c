"""The same training on one device, on eight, and by two processes: equal to round-off, whatever the number of runs and wherever the
bags are.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from mil_jax import aggregators, train
from mil_jax.aggregators.r2t import R2T
from mil_jax.aggregators.reembedding import Reembedded
from mil_jax.engine import device_memory, distributed
from mil_jax.engine.mesh import require_devices
from mil_jax.errors import ConfigError
from mil_jax.run_folder.folder import RunFolder
from tests.commands import run
from tests.engine.fit_alone import ROOT, SECONDS, Job, fit_alone, fit_here, free_port, simulated

TOLERANCE = 1e-5
RESIDENT, STREAMED, SPREAD = "ResidentBags", "StreamedBags", "SpreadBags"


def _assert_close(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, array in one.items():
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if "['attention_w']['bias']" not in name:
            np.testing.assert_allclose(array, other[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


def test_eight_devices_equal_those_of_this_process(tmp_path):
    """Five runs on four pairs of devices, each of which shares a batch."""
    job = Job(str(tmp_path / "8.npz"), devices=8, epochs=2, settings={"batch_size": 4, "data_parallel": 2})
    (eight,) = fit_alone(job)
    _assert_close(eight, fit_here(dataclasses.replace(job, settings={"batch_size": 4})))


@pytest.mark.full
@pytest.mark.parametrize(
    ("replicas", "settings", "kind"),
    [
        (5, {}, RESIDENT),
        (11, {}, RESIDENT),
        (25, {}, RESIDENT),
        (11, {"replica_axis": "vmap"}, RESIDENT),
        (2, {"batch_size": 4, "data_parallel": 4}, RESIDENT),
        (5, {"batch_size": 4, "data_parallel": 2, "replica_axis": "vmap"}, RESIDENT),
        (3, {"batch_size": 6, "data_parallel": 4}, RESIDENT),  # 4 does not divide 6: two devices share
        (11, {}, SPREAD),
        (5, {"order": "fold", "replica_axis": "vmap"}, SPREAD),
        (2, {"instance_parallel": 8}, STREAMED),
        (5, {"instance_parallel": 4, "replica_axis": "vmap"}, RESIDENT),
        (3, {"batch_size": 4, "data_parallel": 2, "instance_parallel": 2}, STREAMED),
        (3, {"batch_size": 4, "data_parallel": 2, "instance_parallel": 2, "replica_axis": "vmap"}, SPREAD),
        (1, {"instance_parallel": 7}, STREAMED),  # 7 divides no length: four devices share
    ],
)
def test_eight_devices_equal_one_also_where_runs_do_not_divide(tmp_path, replicas, settings, kind):
    """An epoch has some 20 steps. Eight devices hold no, one or several runs each."""
    job = Job(str(tmp_path / "8.npz"), devices=8, replicas=replicas, settings=settings, kind=kind)
    _assert_close(*fit_alone(job, dataclasses.replace(job, out=str(tmp_path / "1.npz"), devices=1, kind=RESIDENT)))


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"devices": 1}, {"devices": 8}),
        ({"devices": 8}, {"devices": 1}),
        ({"devices": 8, "kind": SPREAD}, {"devices": 4, "kind": STREAMED, "settings": {"instance_parallel": 4}}),
    ],
)
def test_a_checkpoint_is_gone_on_with_on_other_devices(tmp_path, before, after):
    def job(name: str, **more) -> Job:
        return Job(str(tmp_path / name), replicas=11, epochs=3, **more)

    folder = str(tmp_path / "checkpoints")
    undisturbed, stopped = fit_alone(
        job("undisturbed.npz", **before), job("stopped.npz", **before, checkpoints=folder, stop_after=25)
    )
    assert not stopped
    (resumed,) = fit_alone(job("resumed.npz", **after, checkpoints=folder))
    _assert_close(resumed, undisturbed)


def _shared_bag(folder: Path, *aggregators: str) -> dict[str, dict[str, float]]:
    """What `share_a_bag` says of them, on eight devices."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engine.share_a_bag", str(folder / "shards"), *aggregators],
        env=simulated(8),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "aggregators",
    [
        ("abmil",),
        pytest.param(
            ("mean_pooling", "max_pooling", "clam_sb", "clam_mb", "dsmil", "dtfd", "patch_gcn"), marks=pytest.mark.full
        ),
    ],
)
def test_eight_devices_share_a_bag_and_its_memory(tmp_path, aggregators):
    """One step of gradient descent, as long as the gradient, and predictions."""
    found_of = _shared_bag(tmp_path, *aggregators)
    assert found_of.keys() == set(aggregators)
    for name, found in found_of.items():
        assert max(found["loss"], found["params"], found["logits"]) < 1e-4, (name, found)
        assert found["features"] == 8, "each device holds an eighth of a window"
        assert found["temporary"] > (2 if name == "patch_gcn" else 5), (name, found)  # neighbours are gathered


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--config.train.instance_parallel=4096"],
            "train.instance_parallel=4096 ask for 4096 devices for one batch, and there are",
        ),
        (
            ["--config.train.data_parallel=4096"],
            "train.data_parallel=4096 and train.instance_parallel=1 ask for 4096 devices",
        ),
    ],
)
def test_more_devices_than_there_are_is_said(tmp_path, capsys, flags, sentence):
    ended = run(train.main, _settings(tmp_path / "run", tmp_path / "cache", *flags), capsys)
    assert (ended.code, sentence in ended.err) == (2, True), ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "module",
    [
        aggregators.create("transmil", 2),
        aggregators.create("rrt", 2),
        Reembedded(2, R2T(), aggregators.create("abmil", 2)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_bag_whose_instances_are_computed_from_others_is_not_shared(monkeypatch, module):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    require_devices(module, 2, 1)
    with pytest.raises(ConfigError, match=r"instance_parallel=2 would save no memory: .* leave it at 1"):
        require_devices(module, 1, 2)


def _settings(run: Path, cache: Path, *flags: str) -> list[str]:
    """A short training of the embedded digits."""
    settings = {
        "run": run,
        "aggregator.feature_dim": 8,
        "aggregator.attention_dim": 4,
        "data.cache": cache,
        "data.max_buckets": 1,
        "data.filter": f"slide_id in {[f'digits-{fold}-{number:03d}' for fold in range(5) for number in range(24)]}",  # 120 of the 600
        "data.min_matched": 0.1,
        "train.checkpoint_seconds": 0,
    }
    return ["--config=configs/abmil.py", *(f"--config.{name}={value}" for name, value in settings.items()), *flags]


class _Command:
    """A training by several processes. devices: of each. host_bytes: memory that a process believes to have, by its number."""

    def __init__(
        self,
        run: Path,
        cache: Path,
        count: int,
        *flags: str,
        devices: int = 1,
        host_bytes: dict[int, int] | None = None,
    ) -> None:
        port = free_port()
        self.processes = []
        for number in range(count):
            together = {"coordinator": f"localhost:{port}", "num_processes": count, "process_id": number}
            mine = [f"--config.distributed.{name}={value}" for name, value in together.items()] if count > 1 else []
            program = ["-m", "mil_jax.train"]
            if number in (host_bytes or {}):
                has = f"memory.memory_bytes = lambda: {host_bytes[number]}"
                main = "from mil_jax import train; from mil_jax.cli import console; console.run_command(train.main)"
                program = ["-c", f"from mil_jax.engine import device_memory as memory; {has}; {main}"]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *program, *_settings(run, cache, *flags), *mine],
                    env=simulated(devices),
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
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


@pytest.mark.parametrize(
    "held",
    [
        (),
        pytest.param(("--config.train.memory_gib=5e-4", "--config.data.prefetch_gib=1e-4"), marks=pytest.mark.full),
    ],
    ids=["by each", "together"],
)
def test_two_processes_train_as_one_and_the_first_alone_writes_and_speaks(tmp_path, capsys, held):
    flags = ("--config.train.epochs=2",)
    two = _Command(tmp_path / "two", tmp_path / "cache", 2, *flags, *held)
    (code, out, err), (other_code, other_out, other_err) = two.end()
    assert (code, other_code) == (0, 0), err + other_err
    assert run(train.main, _settings(tmp_path / "alone", tmp_path / "cache", *flags), capsys).code == 0
    _assert_same_result(tmp_path / "two", tmp_path / "alone")
    assert "Everything is in" in out
    assert ("held by all devices together" in " ".join(out.split())) == bool(held)
    assert not [line for line in other_out.splitlines() if "Gloo" not in line]
    assert RunFolder.open(tmp_path / "two").read_json("environment.json")["sessions"][0]["processes"] == 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--config.train.memory_gib=5e-4", "--config.data.prefetch_gib=2e-4"),
            "held by all devices together (that is more than 70% of",
        ),
        (("--config.train.instance_parallel=4", "--config.data.residency=streamed"), "streamed (as asked)"),
    ],
)
def test_the_command_trains_what_is_too_large_for_a_device(tmp_path, flags, said):
    """A cohort, and a bag, on eight devices."""
    usual = ("--config.train.epochs=2",)
    many = _Command(tmp_path / "many", tmp_path / "cache", 1, *usual, *flags, devices=8)
    ((code, out, err),) = many.end()
    assert code == 0, err
    assert said in " ".join(out.split()), out
    assert _Command(tmp_path / "one", tmp_path / "cache", 1, *usual).end()[0][0] == 0
    _assert_same_result(tmp_path / "many", tmp_path / "one")


@pytest.mark.full
def test_processes_with_different_memory_choose_by_the_smallest(tmp_path):
    """The second has half a mebibyte, of which the cohort would take more than its part."""
    flags = ("--config.train.epochs=1", "--config.data.prefetch_gib=1e-3")
    two = _Command(tmp_path / "two", tmp_path / "cache", 2, *flags, host_bytes={1: 1 << 19})
    (code, out, err), (other_code, _, other_err) = two.end()
    assert (code, other_code) == (0, 0), err + other_err
    assert "streamed (that is more than 70% of this machine's 0.5 MiB of host memory)" in " ".join(out.split()), out


def test_what_there_is_is_the_least_of_all_processes(monkeypatch):
    here = device_memory.min_memory()  # kept from then on
    monkeypatch.setattr(device_memory, "global_min", lambda value: value / 2)
    everywhere = device_memory.min_memory.__wrapped__()
    assert (everywhere.host, everywhere.device) == (here.host // 2, here.device // 2)
    assert (device_memory.available_memory(3.0).device, device_memory.available_memory(3.0).own) == (3 * 2**30, True)


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
        distributed.start(*settings)


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (f"'localhost:{free_port()}', 2, 1", "not all processes of distributed.coordinator"),
        ("'auto', 0, -1", "distributed.coordinator=auto cannot be used"),
    ],
    ids=["a coordinator that does not answer", "nothing to find it by"],
)
def test_other_processes_that_are_not_there_are_said(settings, sentence):
    lines = (
        "from mil_jax.cli.console import run_command; from mil_jax.engine import distributed; distributed.CONNECT_SECONDS = 3; "
        f"run_command(lambda _: distributed.start({settings}) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert sentence in ended.stderr
