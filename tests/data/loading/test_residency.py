"""Residency is chosen by bytes against memory, and said with both."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.data.loading import residency
from mil_jax.errors import DataError
from mil_jax.machine import Memory

GIB = 2**30
CPU = Memory(host=10 * GIB, device=5 * GIB, own=False, devices=2)
GPUS = Memory(host=20 * GIB, device=10 * GIB, own=True, devices=4)
MIB_BAGS = 1024  # rows of a bag of 1 MiB


def _chosen(asked: str, gib: float, memory: Memory, prefetch_gib: float = 2) -> residency.Residency:
    """For bags of 1 MiB, so many GiB of them."""
    return residency.choose_residency(asked, np.full(int(gib * 1024), MIB_BAGS), 0, 1024, prefetch_gib, memory)


@pytest.mark.parametrize(
    ("asked", "gib", "chosen", "said"),
    [
        ("auto", 7, "resident", "take 7 GiB; held in memory (there are 10 GiB of host memory)"),
        ("auto", 8, "streamed", "take 8 GiB; streamed (that is more than 70% of this machine's 10 GiB of host memory)"),
        ("streamed", 7, "streamed", "(as asked): 3 windows of host memory, at most 2 GiB together"),
        ("resident", 7, "resident", "held in memory (as asked; there are 10 GiB"),
    ],
)
def test_the_choice_and_its_reason(asked, gib, chosen, said):
    found = _chosen(asked, gib, CPU)
    assert (found.kind, found.spread, said in found.note) == (chosen, False, True), found.note


@pytest.mark.parametrize(
    ("asked", "gib", "chosen", "spread", "said"),
    [
        ("auto", 7, "resident", False, "held in memory (there are 10 GiB of device memory)"),
        ("auto", 18, "resident", True, "at most 4.5 GiB of bags and 3 windows, at most 2 GiB together, on each of 4 devices"),
        ("resident", 18, "resident", True, "held by all devices together (as asked; that is more than 70% of"),
        ("streamed", 18, "streamed", False, "streamed (as asked)"),
        ("auto", 24, "streamed", False, "6 GiB on each of 4 devices, with windows of at most 2 GiB together, are too much"),
    ],
)  # fmt: skip
def test_several_devices_hold_together_what_one_cannot(asked, gib, chosen, spread, said):
    found = _chosen(asked, gib, GPUS)
    assert (found.kind, found.spread, said in found.note) == (chosen, spread, True), found.note


def test_a_device_may_hold_more_than_its_host():
    """A cohort goes to it block by block."""
    found = _chosen("auto", 20, Memory(host=10 * GIB, device=40 * GIB, own=True, devices=1))
    assert (found.kind, "there are 40 GiB of device memory" in found.note) == ("resident", True)


def test_more_rows_than_an_offset_can_count_are_streamed_however_narrow():
    found = residency.choose_residency("auto", np.array([2**31]), 0, 2, 4, CPU)
    assert (found.kind, "cannot be held as one array" in found.note) == ("streamed", True)


@pytest.mark.parametrize(("gib", "memory"), [(8, CPU), (24, GPUS)])
def test_a_cohort_that_does_not_fit_where_it_was_asked_to_be_is_refused_with_what_would_do(gib, memory):
    with pytest.raises(DataError, match=rf"{gib} GiB, and that is more than 70% .* set data\.residency=streamed"):
        _chosen("resident", gib, memory)
