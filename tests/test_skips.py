"""Skipped tests are counted by reason, whole files apart."""

from __future__ import annotations

import sys

import pytest

from tests.skips import counted, needs


def test_skips_are_counted_by_reason():
    def of_test(reason: str) -> pytest.TestReport:
        return pytest.TestReport("a::b", ("a", 1, "b"), {}, "skipped", ("a", 1, f"Skipped: {reason}"), "call")

    of_file = pytest.CollectReport("a", "skipped", ("a", 1, "Skipped: no oracle"), [])
    assert counted([of_test("no oracle"), of_test("no data"), of_file, of_test("no oracle")]) == [
        "skipped: 2 tests because no oracle",
        "skipped: 1 test because no data",
        "skipped: 1 file because no oracle",
    ]


def test_a_missing_library_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(pytest.skip.Exception, match=r"PyTorch is not installed: pip install -e '\.\[torch\]'"):
        needs("torch")
