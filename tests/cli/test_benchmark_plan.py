"""Methods of a benchmark are found by their titles and by their configs."""

from __future__ import annotations

import pytest

from mil_jax.cli.benchmark_plan import Method, chosen_methods
from mil_jax.errors import ConfigError

METHODS = {
    "ABMIL": Method("configs/abmil.py"),
    "CLAM-SB": Method("configs/clam_sb.py"),
    "wide": Method("configs/rrt.py"),
    "narrow": Method("configs/rrt.py"),
}


def test_methods_by_title_and_by_config():
    assert chosen_methods(["clam_sb", "ABMIL", "abmil"], METHODS) == ["CLAM-SB", "ABMIL"]
    assert chosen_methods([], METHODS) == [*METHODS]


@pytest.mark.parametrize(("name", "said"), [("rrt", "wide, narrow"), ("abmill", "unknown")])
def test_what_names_no_single_method_is_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        chosen_methods([name], METHODS)
