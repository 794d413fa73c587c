"""What the benchmark of programs that are compiled for a GPU reads from them."""

from __future__ import annotations

import pytest

from benchmarks import compiled_gpu, gpu_offline
from tests.skips import needs

MODULE = """\
HloModule jit_step, entry_computation_layout={(f32[1000,8]{1,0}, f32[8,4]{1,0})->f32[10,4]{1,0}}

%fused (p: f32[1000,8], i: s32[]) -> f32[10,8] {
  %p = f32[1000,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %taken = f32[10,8]{1,0} gather(%p, %i), slice_sizes={10,8}
}

%body (t: (f32[10,8], f32[8,4])) -> (f32[10,8], f32[8,4]) {
  %t = (f32[10,8]{1,0}, f32[8,4]{1,0}) parameter(0)
  %x = f32[10,8]{1,0} get-tuple-element(%t), index=0
  %w = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %gemm = f32[10,4]{1,0} custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"operand_precision":["HIGHEST","HIGHEST"]}
  ROOT %again = (f32[10,8]{1,0}, f32[8,4]{1,0}) tuple(%x, %w)
}

%condition (t.1: (f32[10,8], f32[8,4])) -> pred[] {
  ROOT %t.1 = (f32[10,8]{1,0}, f32[8,4]{1,0}) parameter(0)
}

ENTRY %main (cohort: f32[1000,8], w.1: f32[8,4]) -> f32[10,4] {
  %cohort = f32[1000,8]{1,0} parameter(0)
  %w.1 = f32[8,4]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %bag = f32[10,8]{1,0} fusion(%cohort, %zero), kind=kLoop, calls=%fused
  %start = (f32[10,8]{1,0}, f32[8,4]{1,0}) tuple(%bag, %w.1)
  %eight = (f32[10,8]{1,0}, f32[8,4]{1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %some = (f32[10,8]{1,0}, f32[8,4]{1,0}) while(%eight), condition=%condition, body=%body
  ROOT %out = f32[10,4]{1,0} sort(%w.1), dimensions={0}
}
"""


def test_kernels_bytes_and_loops_are_read_from_a_module():
    found = compiled_gpu.read(MODULE, whole=30_000, part=320)
    assert (found.known_trips, found.unknown_trips, found.sorts, found.scatters, found.exact_products) == (
        (8,),
        1,
        1,
        0,
        1,
    )
    assert found.launches == 1 + 8 + 1 + 1  # the bag, its products in both loops, the sort
    product = (10 * 8 + 8 * 4 + 10 * 4) * 4
    assert found.gigabytes(products=True) * 1e9 == 9 * product
    assert found.gigabytes(products=False) * 1e9 == (320 + 10 * 8 * 4) + 2 * 32 * 4 + (10 * 4 - 8 * 4) * 4
    assert [kernel.is_product for kernel in found.kernels] == [False, True, True, False]


def test_changes_against_the_stored_table_are_told_and_small_ones_are_not():
    stored = {"abmil": {"train": {"launches": 100.0, "cpu_seconds": 1.0}}, "dsmil": {"left out": "it took too long"}}
    now = {"abmil": {"train": {"launches": 50.0, "cpu_seconds": 9.0}}, "dsmil": {"train": {"launches": 1.0}}, "rrt": {}}
    assert gpu_offline.changes(stored, now) == ["abmil, train, launches: 100 before, 50 now"]
    now["abmil"]["train"]["launches"] = 101.0
    assert gpu_offline.changes(stored, now) == []


@pytest.mark.full
@pytest.mark.parametrize("method", ["abmil", "mean_pooling", "dsmil"])
def test_a_method_compiles_for_an_h200(method, monkeypatch):
    needs("jax_plugins.xla_cuda13")
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
        monkeypatch.setenv(name, "")  # set back afterwards
    gpu_offline.use_xla_of_gpu()
    found = gpu_offline.compiled_apart(gpu_offline.Case(method, runs=2, instances=256), seconds=600)
    for program in gpu_offline.PROGRAMS:
        assert found[program]["launches"] > 5
        assert found[program]["product_gb"] > 2 * 256 * gpu_offline.DIM * 2 / 1e9  # the features of both runs are read
        assert found[program]["temporary_gib"] < 1
