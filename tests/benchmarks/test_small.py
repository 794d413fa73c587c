"""The benchmarks that are run by hand on large machines run from end to end at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evaluation, h200, large_inputs, scaling, strategies


def result(folder: Path) -> dict:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_epochs_on_a_gpu_machine_are_measured_small_on_a_cpu(tmp_path):
    h200.main(["--machine=test", "--small", "--only=epochs of abmil, 5 runs, mean 16", f"--results={tmp_path}"])
    (row,) = result(tmp_path)["table"]
    assert "bags/s" in row["result"]
    (line,) = (tmp_path / "h200-test.jsonl").read_text().splitlines()
    assert json.loads(line)["bags_per_second"] > 0


@pytest.mark.full
def test_every_case_for_a_gpu_machine_ends_small_on_a_cpu(tmp_path):
    h200.main(["--machine=test", "--small", "--rehearse", "--budget=2000", f"--results={tmp_path}"])
    found = {row["what"]: row["result"] for row in result(tmp_path)["table"]}
    assert "ZeroDivisionError" in found.pop("rehearsal: raises")
    assert "hung" in found.pop("rehearsal: hangs")
    assert "ended with" in found.pop("rehearsal: ends its process")
    assert "may be used" in found.pop(
        "epochs of abmil, 1 runs, mean 40, train.memory_gib=1e-6, train.replica_axis=vmap"
    )
    wrong = {name: said for name, said in found.items() if "Error" in said or "not done" in said or "ended" in said}
    assert not wrong


def test_what_evaluation_takes_is_measured(tmp_path):
    evaluation.main(["--machine=test", "--small", "--rounds=1", f"--results={tmp_path}"])
    seconds = result(tmp_path)["figures"]["seconds"]
    assert seconds.keys() == {"classes", "C-index", "survival", "columns"}
    assert all(one > 0 for times in seconds.values() for one in times)


SIZES = {"bags": "20,40", "runs": "1,2", "targets": "1,2", "devices": "1,2"}


def test_a_step_is_measured_against_instances_with_memory_and_a_picture(tmp_path):
    scaling.main(
        [
            "--machine=test",
            "--part=instances",
            "--aggregators=abmil",
            "--values=64",
            "--dim=8",
            "--small",
            f"--results={tmp_path}",
        ]
    )
    (point,) = result(tmp_path)["figures"]["points"]["abmil"]
    assert point["seconds"] > 0
    assert point["temporary_bytes"] > 0
    assert (tmp_path / "scaling-instances-test.png").stat().st_size > 1000


@pytest.mark.full
def test_bags_of_regions_are_as_long_as_their_tiles(tmp_path):
    options = ["--machine=test", "--part=instances", "--dim=8", "--small", f"--results={tmp_path}"]
    scaling.main([*options, "--aggregators=hipt", "--values=72"])
    (point,) = result(tmp_path)["figures"]["points"]["hipt"]
    assert point["length"] == 72  # 8 regions of 3 x 3


@pytest.mark.full
def test_ways_of_training_are_measured_against_a_plain_step(tmp_path):
    strategies.main(["--machine=test", "--rounds=1", "--instances=16", "--dim=4", f"--results={tmp_path}"])
    assert set(result(tmp_path)["figures"]) == set(strategies.WAYS)
    assert len(result(tmp_path)["table"]) == len(strategies.WAYS) - 1


@pytest.mark.full
@pytest.mark.parametrize("part", SIZES)
def test_an_epoch_is_measured_against_each_axis(part, tmp_path):
    scaling.main(["--machine=test", f"--part={part}", f"--values={SIZES[part]}", f"--results={tmp_path}"])
    points = result(tmp_path)["figures"]["points"]["abmil"]
    assert [point["value"] for point in points] == [int(value) for value in SIZES[part].split(",")]
    assert all(point["seconds"] > 0 for point in points)


def test_the_slope_of_a_straight_line_is_one():
    line = scaling._line([{"value": n, "seconds": 3e-3 * n} for n in (1, 2, 5, 10)])
    assert line["slope"] == pytest.approx(1)
    assert line["bend"] == pytest.approx(0, abs=1e-9)


@pytest.mark.full
@pytest.mark.parametrize("part", large_inputs.PARTS)
def test_large_inputs_are_measured_small(part, tmp_path):
    figures = large_inputs.PARTS[part](tmp_path / "cohort", True)
    assert all(one["seconds"] > 0 and one["peak_GB"] > 0 for one in figures.values())
