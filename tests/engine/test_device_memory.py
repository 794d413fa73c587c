"""Runs side by side: as many as the memory takes, in each bucket; in parts they are what they are together."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from mil_jax.engine import device_memory
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.mesh import replica_mesh
from mil_jax.engine.types import EngineSettings, FitResult, Phase
from mil_jax.errors import ConfigError
from mil_jax.machine import group_limits, memory_bytes
from tests.engine.cohorts import TASK, Silent, engine_data, plan, strategy

RUNS_PER_DEVICE = 5
LARGEST_IS_NAMED = (
    r"bags of up to 16 instances need .* GiB of .* for one run at a time, and .* GiB may be used.* data.filter"
)


def _fit(keep=None, **settings) -> FitResult:
    """20 steps and more of RUNS_PER_DEVICE runs on each device, side by side."""
    return fit(
        [Phase(strategy(), 1, Selection("val_loss"))],
        engine_data(num_bags=60),
        TASK,
        plan(folds=1, seeds=RUNS_PER_DEVICE * replica_mesh().size),
        EngineSettings(replica_axis="vmap", **settings),
        Silent(),
        keep_choices=keep,
    )


def _assert_close(one: FitResult, other: FitResult) -> None:
    leaves = jax.tree_util.tree_leaves_with_path((one.state, one.logits))
    for (path, ours), theirs in zip(leaves, jax.tree.leaves((other.state, other.logits)), strict=True):
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if not jax.tree_util.keystr(path).endswith("['attention_w']['bias']"):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def together() -> FitResult:
    return _fit()


@pytest.mark.full
@pytest.mark.parametrize("chunks", [{8: 2, 16: 3}, {8: 1, 16: 4}])
def test_runs_in_parts_equal_runs_together(together, chunks):
    in_parts = _fit(side_by_side={"supervised": chunks})
    _assert_close(in_parts, together)
    assert in_parts.facts["compilations"] == together.facts["compilations"], "a known choice is not tried out again"


def test_memory_decides_before_training_how_many_go_side_by_side(together):
    class NotYet(Silent):
        def steps(self, count):
            super().steps(count)
            assert kept, "chosen after the first step"

    kept = []
    needs = []

    def watch(program):
        needs.append(original(program))
        return needs[-1]

    original = device_memory.needed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_memory, "needed", watch)
        _fit(memory_gib=1.0)
        whole = max(needs)
        limited = _fit(kept.append, memory_gib=(whole - 1) / 2**30)
    (choices,) = kept
    chunks = choices["runs_side_by_side"]["supervised"]
    assert set(chunks) == {8, 16}
    assert 1 <= min(chunks.values()) < RUNS_PER_DEVICE
    assert limited.facts["compilations"] > together.facts["compilations"], "trials are counted"
    _assert_close(limited, together)


def test_a_bucket_of_which_one_run_does_not_fit_is_named_with_its_bytes_and_what_to_change():
    with pytest.raises(ConfigError, match=LARGEST_IS_NAMED):
        _fit(memory_gib=1e-6)


def test_runs_one_after_another_are_refused_before_the_first_step_where_the_longest_bags_do_not_fit():
    class NoStep(Silent):
        def steps(self, count):
            raise AssertionError("a step was made")

    settings = EngineSettings(replica_axis="map", memory_gib=1e-6)
    with pytest.raises(ConfigError, match=LARGEST_IS_NAMED):
        fit([Phase(strategy(), 1, Selection("val_loss"))], engine_data(), TASK, plan(), settings, NoStep())


def test_what_the_devices_of_a_cpu_share_is_counted_once(monkeypatch):
    """100 bytes of a device's own and 80 of all."""
    monkeypatch.setattr(device_memory, "needed", lambda program: program.needed)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    device_memory.require_room(_Program(180), 120, common=80)
    with pytest.raises(device_memory.DoesNotFit) as caught:
        device_memory.require_room(_Program(180), 119, common=80)
    assert (caught.value.needed, caught.value.limit) == (120, 119)


@pytest.mark.parametrize(
    ("line", "top", "name"), [("0::", "", "memory.max"), ("4:cpu,memory:", "memory", "memory.limit_in_bytes")]
)
def test_memory_is_what_the_container_or_batch_job_may_use(tmp_path, line, top, name):
    (tmp_path / "membership").write_text(f"9:name=systemd:/other\n{line}/job/step\n")
    limits = {"": "max", "job": "3000", "job/step": "5000"}
    for group, limit in limits.items():
        folder = tmp_path / "root" / top / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{limit}\n")
    assert sorted(group_limits(tmp_path / "membership", tmp_path / "root")) == [3000, 5000]
    assert not list(group_limits(tmp_path / "missing", tmp_path / "root"))
    assert memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _Program:
    def __init__(self, needed: int) -> None:
        self.needed = needed


@pytest.mark.parametrize(
    ("limit", "expected", "trials"),
    [(3000, 25, 0), (2600, 25, 0), (2599, 13, 2), (1400, 13, 2), (600, 5, 2), (250, 1, 1), (200, 1, 1)],
)
def test_the_largest_even_part_that_fits_is_found_from_two_compilations(monkeypatch, limit, expected, trials):
    """100 bytes of their own and 100 for each run."""
    monkeypatch.setattr(device_memory, "needed", lambda program: program.needed)
    found, program, tried = device_memory.largest_that_fits(25, limit, lambda k: _Program(100 + 100 * k))
    assert (found, program.needed, tried) == (expected, 100 + 100 * expected, trials)


def test_a_line_that_misleads_is_corrected(monkeypatch):
    """Where memory grows faster at first than between one and all, the guess does not fit; smaller parts are tried."""
    monkeypatch.setattr(device_memory, "needed", lambda program: program.needed)
    found, _, _ = device_memory.largest_that_fits(16, 900, lambda k: _Program(int(1000 * (k / 16) ** 0.5)))
    assert found == 8
    assert 1000 * (found / 16) ** 0.5 <= 900
