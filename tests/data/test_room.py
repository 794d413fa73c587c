"""Residency is chosen by bytes against memory, and said with both."""

from __future__ import annotations

import pytest

from mil_jax.data import room
from mil_jax.errors import DataError

GIB = 2**30


@pytest.fixture(autouse=True)
def ten_gib(monkeypatch):
    """A machine with 10 GiB."""
    monkeypatch.setattr(room, "memory_bytes", lambda: 10 * GIB)


@pytest.mark.parametrize(
    ("asked", "rows", "chosen", "said"),
    [
        ("auto", 7 * 2**20, "resident", "take 7 GiB; held in memory (there are 10 GiB of host memory)"),
        ("auto", 8 * 2**20, "streamed", "take 8 GiB; streamed (that is more than 70% of this machine's 10 GiB of host memory)"),
        ("streamed", 7 * 2**20, "streamed", "(as asked): 3 windows of host memory, at most 2 GiB together"),
        ("resident", 7 * 2**20, "resident", "held in memory (as asked; there are 10 GiB"),
    ],
)  # fmt: skip
def test_the_choice_and_its_reason(asked, rows, chosen, said):
    found = room.choose_residency(asked, rows, 1024, 2)
    assert (found.kind, said in found.note) == (chosen, True), found.note


def test_more_rows_than_an_offset_can_count_are_streamed_however_narrow():
    found = room.choose_residency("auto", 2**31, 2, 4)
    assert (found.kind, "cannot be held as one array" in found.note) == ("streamed", True)


def test_a_cohort_that_does_not_fit_where_it_was_asked_to_be_is_refused_with_what_would_do():
    with pytest.raises(DataError, match=r"8 GiB, and that is more than 70% .* set data\.residency=streamed"):
        room.choose_residency("resident", 8 * 2**20, 1024, 4)
