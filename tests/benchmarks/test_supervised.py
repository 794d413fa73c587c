"""Cases of a benchmark end by themselves, at their deadline, or with their process; the others are measured all the same."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks import supervised
from benchmarks.supervised import Case


def _raise(_: Any) -> dict[str, Any]:
    raise ValueError("no such thing")


def _hang(_: Any) -> dict[str, Any]:
    lock = (ctypes.c_char * 256)()
    for _ in range(2):  # the second waits for ever, and hears no signal
        ctypes.CDLL(None).pthread_mutex_lock(lock)
    return {}


def _sleep(_: Any) -> dict[str, Any]:
    time.sleep(60)
    return {}


def _end(_: Any) -> dict[str, Any]:
    os._exit(3)


def cases() -> list[Case]:
    measured = {"raises": _raise, "hangs": _hang, "ends": _end, "sleeps": _sleep}
    deadlines = {"raises": 5.0, "ends": 5.0, "hangs": 0.2, "sleeps": 0.2}
    wrong = [Case(name, deadlines[name], measure, str) for name, measure in measured.items()]
    slow = Case("is prepared slowly", 0.2, lambda _: {}, str, prepare=lambda: time.sleep(60))
    return [*wrong, slow, Case("good", 30.0, lambda six: {"answer": six * 7}, str, prepare=lambda: 6)]


def test_what_ends_badly_ends_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "GRACE", 4.0)
    monkeypatch.setattr(supervised, "PREPARE", 1.0)
    found = supervised.run_cases(cases, (), tmp_path / "lines", 300.0, threads=1)
    assert found["raises"]["left out"] == "ValueError: no such thing"
    assert "hung" in found["hangs"]["left out"]
    assert found["ends"]["left out"] == "its process ended with 3"
    assert found["sleeps"]["left out"] == "not done within 0 s"
    assert found["is prepared slowly"]["left out"] == "not done within 0 s"
    assert found["good"]["answer"] == 42
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["case"] for line in lines] == [*found]


def test_nothing_begins_when_the_time_is_over(tmp_path):
    found = supervised.run_cases(cases, (), Path(tmp_path / "lines"), 0.0, threads=1)
    assert all("were over" in one["left out"] for one in found.values())
