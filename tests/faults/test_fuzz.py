"""Damaged files of every kind end in one sentence: `fuzz.py` on some cases, and on many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import fuzz


@pytest.mark.parametrize(
    ("seed", "cases"), [(1, 150), pytest.param(2, 2000, marks=pytest.mark.full)], ids=["some", "many"]
)
def test_damaged_files_are_refused_in_one_sentence(seed, cases):
    """In a process of its own, which has not used JAX: its threads do not survive a fork."""
    command = [sys.executable, "-m", "tests.faults.fuzz", "--seed", str(seed), "--cases", str(cases)]
    ended = subprocess.run(command, cwd=Path(fuzz.__file__).parents[2], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1].startswith(f"{cases} cases, 0 wrong")) == (0, True), (
        ended.stdout
    )


def test_a_case_is_the_same_again(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    kinds = {fuzz.prepare_case(3, 21, tmp_path / name) for name in ("one", "other")}
    assert len(kinds) == 1
    contents = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "other")
    ]
    assert contents[0] == contents[1]


def test_what_goes_wrong_is_told_with_the_command_that_repeats_it(monkeypatch):
    def read(folder):
        raise ZeroDivisionError(f"in {folder}")

    monkeypatch.setattr(fuzz, "KINDS", {"splits": fuzz.Kind(fuzz._splits, lambda folder: None)})
    assert fuzz.fuzz(5, range(3)) == []
    monkeypatch.setitem(fuzz.KINDS, "splits", fuzz.Kind(fuzz._splits, read))
    wrong = fuzz.run_case(5, 7)
    assert "ZeroDivisionError" in wrong
    monkeypatch.setitem(fuzz.KINDS, "splits", fuzz.Kind(fuzz._splits, lambda folder: bytearray(8 << 30)))
    assert "MemoryError" in fuzz.run_case(5, 7)
