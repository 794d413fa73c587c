"""What the engine's programs do on an NVIDIA H200, on a machine without one: XLA compiles them for it, and its module is read.

    pip install "jax[cuda13]" -e .                      in an environment of its own; no GPU is needed
    python -m benchmarks.gpu_offline --machine offline                       every method, compared with the stored table
    python -m benchmarks.gpu_offline --machine offline --only=abmil --kernels=12     one, with the kernels that move most

A row for each method, number of runs and length: kernel launches and GB of one step of all runs (of a dispatch of AT_ONCE, divided by as
many), by matrix products and by all else; temporary memory; loops before whose rounds the host waits for the device; scatters, sorts,
and products of full float32 precision. Fusions, loops and buffers are those of the device; matrix kernels are not tuned, and may differ
there. Nothing is run, so there are no seconds.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import compiled_gpu
from benchmarks.cases import FOLDS, drawn_experiment, with_runs
from benchmarks.common import MACHINE, RESULTS, write_result
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine import array_shapes, programs
from mil_jax.engine.bag_order import FOLD
from mil_jax.engine.compilation import Programs
from mil_jax.engine.programs import AXIS, EvaluationInputs, StepInputs
from mil_jax.experiment.experiment import engine_data
from mil_jax.experiment.phases import MEASURED
from mil_jax.layers import backend
from mil_jax.strategies.base import Strategy

_ONLY = flags.DEFINE_list("only", [], "Names of cases, as the table has them up to the first comma; all without it.")
_RUNS = flags.DEFINE_integer("runs", 0, "In place of the runs of each case.")
_INSTANCES = flags.DEFINE_integer("instances", 0, "In place of the instances of each case.")
_KERNELS = flags.DEFINE_integer("kernels", 0, "Also prints so many kernels, those that move most.")
_SECONDS = flags.DEFINE_integer("seconds", 900, "A method that takes longer is left out, and it is said.")

RUNS, INSTANCES, DIM, NUM_BAGS, STEPS, HELD_OUT = 25, 4096, 1024, 400, 288, 60  # of an epoch of 400 bags in five folds
AT_ONCE = 8  # steps of a dispatch
METHODS = (
    *("abmil", "clam_sb", "clam_mb", "dsmil", "transmil", "rrt", "rrt_abmil", "dtfd", "patch_gcn", "hipt", "hipt_none"),
    *("mean_pooling", "max_pooling", "mhim_abmil", "ibmil_abmil"),
)


class Case(NamedTuple):
    """config: of those that ship. settings: over it. instances: of the longest bag, tiles where instances are regions."""

    config: str
    runs: int = RUNS
    instances: int = INSTANCES
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the table has it."""
        more = f", {self.settings[0]}" if self.settings else ""
        return f"{self.config}, R={self.runs}, N={self.instances}{more}"


CASES = (
    *(Case(method) for method in METHODS),
    Case("abmil", 1),
    Case("abmil", RUNS, 10_112),
    *(Case(method, settings=("train.order=fold",)) for method in ("abmil", "dsmil", "mean_pooling", "max_pooling")),
    Case("abmil", RUNS, 10_112, ("train.order=fold",)),
    Case(
        "mhim_abmil",
        settings=(
            *("strategy.scores=class", "strategy.merge_queries=5", "strategy.mask_random=0.0"),
            *("strategy.mask_low=0.0", "strategy.fusion=vote"),
        ),
    ),
)


def main(_: list[str]) -> None:
    cases = [case for case in CASES if not _ONLY.value or case.config in _ONLY.value]
    cases = [case._replace(runs=_RUNS.value or case.runs) for case in cases]
    cases = [*dict.fromkeys(case._replace(instances=_INSTANCES.value or case.instances) for case in cases)]
    figures: dict[str, Any] = {}
    for case in cases:
        figures[case.name] = found = compiled_apart(case, _SECONDS.value, _KERNELS.value)
        print(f"{case.name}: {_shown(found)}", flush=True)
    path = RESULTS / f"gpu_offline-{MACHINE.value}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.exists() else {}
    print("\n".join(changes(before, figures)) or "as stored")
    if not (_ONLY.value or _RUNS.value or _INSTANCES.value):
        table = [(f"H200, compiled only: {name}", "", _shown(found)) for name, found in figures.items()]
        write_result("gpu_offline", MACHINE.value, figures, table)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each figure that differs from the stored one by more than 2 %; cases that were not stored are left out."""
    lines = []
    for name in [name for name in now if name in before]:
        for program in PROGRAMS:
            old, new = before[name].get(program, {}), now[name].get(program, {})
            for what in [what for what in new if what in old and what != "cpu_seconds"]:
                if abs(new[what] - old[what]) > 0.02 * abs(old[what]):
                    lines.append(f"{name}, {program}, {what}: {old[what]:.4g} before, {new[what]:.4g} now")
    return lines


def use_xla_of_gpu() -> None:
    """To be called before JAX begins: the CPU is the only device, and matrix kernels, which nothing can run, are not tuned.

    Raises ModuleNotFoundError without the CUDA tools of `jax[cuda13]`.
    """
    import jax_plugins.xla_cuda13  # noqa: F401
    import nvidia

    tools = Path(next(iter(nvidia.__path__))) / "cu13"
    if not tools.is_dir():
        raise ModuleNotFoundError(f"{tools}: the CUDA tools of jax[cuda13] are not there")
    os.environ["JAX_PLATFORMS"], os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "cpu", "1"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={tools}"


PROGRAMS = ("train", "evaluate")


def compiled(case: Case, kernels: int = 0) -> dict[str, Any]:
    """The figures of a case by program; prints so many kernels of each."""
    backend.is_cpu, backend.multiplies_tf32 = (
        (lambda: False),
        (lambda: True),
    )  # layers take the forms for this accelerator
    figures = {}
    for program in PROGRAMS:
        begun = time.process_time()
        built, length = _compile(case, program)
        bag_bytes = case.runs * length * DIM * 2
        found = compiled_gpu.read(built.as_text(), whole=0.9 * NUM_BAGS * case.instances * DIM * 2, part=bag_bytes)
        memory: Any = built.memory_analysis()
        figures[program] = {
            "launches": found.launches / AT_ONCE,
            "product_gb": found.gigabytes(products=True) / AT_ONCE,
            "other_gb": found.gigabytes(products=False) / AT_ONCE,
            "temporary_gib": memory.temp_size_in_bytes / 2**30,
            "unknown_trips": found.unknown_trips,
            "scatters": found.scatters,
            "sorts": found.sorts,
            "exact_products": found.exact_products,
            "cpu_seconds": time.process_time() - begun,
        }
        for one in sorted(found.kernels, key=lambda one: -one.moved)[:kernels]:
            print(
                f"{one.moved / AT_ONCE / 1e9:8.3f} GB  x{one.launches:<5d} {one.name[:44]:44s} {one.shape[:50]:50s} {one.kind[:60]}"
            )
    return figures


def _compile(case: Case, program: str) -> tuple[Any, int]:
    """(the program of one dispatch, the length of its bags)."""
    precision = "bfloat16" if case.config in MEASURED else "float32"  # what `auto` takes on a GPU
    experiment = drawn_experiment(
        case.config,
        bags=20,
        mean_size=case.instances,
        sigma=0.0,
        dim=DIM,
        settings=["train.replica_axis=vmap", f"train.precision={precision}", *case.settings],
    )
    experiment = with_runs(experiment, case.runs)
    plan, batch_size = experiment.plan, experiment.config.train.batch_size
    strategy: Strategy = experiment.phases[-1].strategy  # type: ignore[assignment]
    mesh, length = _mesh(), experiment.ladder.lengths[-1]
    everywhere, split = programs.fully_replicated(mesh), programs.replica_sharding(mesh)

    def shape(axes: tuple[int, ...], dtype: Any, sharding: Any = split) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(axes, dtype, sharding=sharding)

    parts, tile = experiment.shards.num_parts, experiment.shards.feature_shape
    rows, neighbors = NUM_BAGS * length + length, experiment.config.data.neighbors
    bags = ResidentBags(
        features=shape((rows, *tile), np.float16, everywhere),
        coords=shape((rows, 2), np.int32, everywhere),
        slide_index=shape((rows,), np.int32, everywhere),
        offsets=shape((NUM_BAGS,), np.int32, everywhere),
        sizes=shape((NUM_BAGS,), np.int32, everywhere),
        neighbors=shape((rows, neighbors), np.int32, everywhere) if neighbors else None,
        part_mask=shape((rows, parts), bool, everywhere) if parts else None,
    )
    targets = np.stack([target.values for target in experiment.targets])
    cohort = programs.DeviceCohort(bags, shape((len(targets), NUM_BAGS, *targets.shape[2:]), targets.dtype, everywhere))
    keys = jax.eval_shape(plan.keys)
    ids = programs.ReplicaIds(key=shape(keys.shape, keys.dtype), target=shape((case.runs,), np.int32))
    fitted = array_shapes.fitted_shapes(strategy, plan, engine_data(experiment), case.runs, tile[1:] if parts else tile)
    fitted = jax.tree.map(lambda x: shape(x.shape, x.dtype), fitted)
    count, ends = shape((mesh.size,), np.int32), shape((case.runs, 2), np.int32)
    state = jax.eval_shape(functools.partial(programs.initial, strategy, length), cohort, ids, fitted, None, count)
    carry = array_shapes.carry_shapes(strategy, plan, state, cohort, length, batch_size, split)
    epoch = array_shapes.epoch_shapes(strategy, plan, case.runs, STEPS, batch_size, split)
    of_fold = case.runs // FOLDS if case.runs % FOLDS == 0 else 1
    same = {"evaluate": of_fold, "train": of_fold if experiment.config.train.order == FOLD else 1}
    steps = {name: [AT_ONCE] for name in PROGRAMS}
    compiler = Programs(strategy, mesh, (length,), True, 1 << 50, steps, same, {length: case.runs})
    if program == "train":
        arguments: tuple[Any, ...] = cohort, carry, StepInputs(ids, epoch, ends), count
    else:
        inputs = EvaluationInputs(carry.state, shape((case.runs, HELD_OUT), np.int32), ends)
        arguments = cohort, shape((case.runs, HELD_OUT, experiment.task.num_outputs), np.float32), inputs, count
    built = compiler._traced(program, 0, case.runs, *arguments)()
    compiler.close()
    return built.program, length * max(parts, 1)


def _mesh() -> Mesh:
    """One H200."""
    described = (Path(__file__).parent / "h200.txtpb").read_text(encoding="utf-8")
    topology: Any = topologies.get_topology_desc("h200", "cuda", target_config=described, topology="1x1x1")
    return Mesh(np.array(topology.devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def compiled_apart(case: Case, seconds: float, kernels: int = 0) -> dict[str, Any]:
    """As `compiled`, in a process of its own: one that fails or takes too long is an entry {"left out": why}."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(compiled, (case, kernels)).get(seconds)
        except multiprocessing.TimeoutError:
            return {"left out": f"not compiled within {seconds:.0f} s"}
        except Exception as error:  # one method does not end the others
            return {"left out": f"{type(error).__name__}: {error}"}


def _shown(found: dict[str, Any]) -> str:
    """A case in words."""
    if "left out" in found:
        return f"left out: {found['left out']}"
    return "; ".join(
        f"{program}: {one['launches']:.0f} launches and {one['product_gb'] + one['other_gb']:.2f} GB a step "
        f"({one['product_gb']:.2f} in products), {one['temporary_gib']:.2f} GiB temporary, {one['unknown_trips']} loops of unknown "
        f"trip count, {one['scatters']} scatters, {one['sorts']} sorts, {one['exact_products']} products in full precision"
        for program, one in found.items()
    )


if __name__ == "__main__":
    use_xla_of_gpu()
    app.run(main)
