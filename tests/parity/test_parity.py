"""What reference implementations returned is what this project returns, bare and padded with NaN.

The default run takes one case per variant; `-m full` takes all. The folder holds numbers computed for this project
only.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.accelerator import forms_of_accelerators
from tests.parity.runner import Outcome, load_cases, run_case, shared_buckets

LARGE_BAG = 250_000  # numbers
FOLDER = Path(__file__).parent / "cases"
CASES = load_cases(FOLDER)
BUCKETS = shared_buckets(CASES)


def _representatives() -> set[str]:
    """The smallest case of each kind: per variant one forward and backward pass, one trajectory, one padded batch; no large bag."""
    chosen: dict[tuple[str, ...], tuple[int, str]] = {}
    for case in CASES:
        if any(math.prod(shape) > LARGE_BAG for shape in case.meta["inputs"].values()):
            continue
        if (
            case.method in ("mhim", "ibmil") and "transmil" in case.name
        ):  # slow to compile, and its encoder has cases of its own
            continue
        network = case.variant.removesuffix("_c16").removesuffix("_tcga")  # of MHIM-MIL, by data set
        if case.method == "ibmil":  # one for each backbone, with a dictionary
            if not case.config["k"]:
                continue
            network = case.variant.split("_")[0]
        kind = (case.method, network, str("optimizer" in case.config), str("lengths" in case.config))
        size = sum(array.size for array in case.arrays.values())
        chosen[kind] = min(chosen.get(kind, (size, case.name)), (size, case.name))
    return {name for _, name in chosen.values()}


CHOSEN = _representatives()
EACH = [pytest.param(case, id=case.name, marks=() if case.name in CHOSEN else pytest.mark.full) for case in CASES]
WITH_BAGS = [one for one in EACH if (one.values[0].method, one.values[0].variant) in BUCKETS]


def _assert_passed(outcome: Outcome, name: str) -> None:
    assert outcome.status == "passed", outcome.line(name)


@pytest.mark.parametrize("case", EACH)
def test_bare(case):
    _assert_passed(run_case(case), case.name)


@pytest.mark.parametrize("case", WITH_BAGS)
def test_padded(case):
    _assert_passed(run_case(case, BUCKETS[case.method, case.variant]), case.name)


TWO_FORMS = (
    "abmil",
    "clam",
    "dtfd",
    "hipt",
    "patchgcn",
    "rrt",
    "transmil",
)  # methods whose layers have one for accelerators
SHORT = ("abmil_milab_gated", "transmil_nystrom_below")
ON_ACCELERATORS = [
    pytest.param(case, id=case.name, marks=() if case.name in SHORT else pytest.mark.full)
    for case in CASES
    if case.method in TWO_FORMS and (case.method, case.variant) in BUCKETS
]


@pytest.mark.parametrize("case", ON_ACCELERATORS)
def test_forms_of_accelerators(case):
    with forms_of_accelerators():
        _assert_passed(run_case(case, BUCKETS[case.method, case.variant]), case.name)
