"""One ABMIL training step (forward, backward, update) against the same step of torchmil's ABMIL, on two CPU threads.

    python -m benchmarks.abmil_step --machine laptop            needs the extra `torchmil`

Gated ABMIL: linear 1024 -> 512, ReLU, attention 512 -> 384 (tanh times sigmoid), one output, binary cross entropy with logits, Adam
with L2. torchmil's attention has no bias in its last layer (385 parameters of about 0.9 million); its feature layer is given to
it as a module, and its classifier is our one output. One bag a step, float32, without dropout and with 0.25 after the feature
layer (torchmil has none within the attention, so here neither). Each library works in a process of its own; they take turns.
Bar: torchmil's time over ours at least 1.0 without dropout.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.common import DEFAULT_MACHINE, median_ratio, write_result

_MACHINE = flags.DEFINE_string("machine", DEFAULT_MACHINE, "Name of the machine, for the result's file.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each library; the median of their ratios counts.")

THREADS, WIDTH, FEATURES, ATTENTION = 2, 1024, 512, 384
SIZES, DROPOUTS = (4096, 10_000), (0.0, 0.25)
LEARNING_RATE, DECAY = 2e-4, 1e-5
SECONDS_PER_TURN = 0.6
BAR = 1.0

Step = Callable[[], None]


def main(_: list[str]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:THREADS]))
    figures, table = {}, []
    for size in SIZES:
        for dropout in DROPOUTS:
            seconds = _compare(size, dropout, _ROUNDS.value)
            ratio = median_ratio(seconds["torchmil"], seconds["mil_jax"])
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            figures[f"N={size}, dropout={dropout}"] = {"ratio": ratio, "seconds": medians, "rounds": seconds}
            what = f"ABMIL step, torchmil's time over ours, N = {size:,}, D = {WIDTH}, dropout {dropout:g}"
            shown = f"{ratio:.2f} ({1e3 * medians['torchmil']:.0f} ms / {1e3 * medians['mil_jax']:.0f} ms)"
            table.append((what, "" if dropout else f"at least {BAR}", shown))
    write_result("abmil_step", _MACHINE.value, figures, table)


def _compare(size: int, dropout: float, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each library in each round."""
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    for name in ("mil_jax", "torchmil"):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(name, size, dropout, theirs))
        process.start()
        theirs.close()
        workers[name] = process, ours
        ours.recv()  # compiled and warm
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers) if number % 2 else reversed(workers):
            workers[name][1].send("run")
            seconds[name].append(workers[name][1].recv())
    for process, connection in workers.values():
        connection.close()
        process.join()
    return seconds


def _work(name: str, size: int, dropout: float, connection: Connection) -> None:
    """A worker: makes its step, then answers every message with the median seconds of a turn's steps."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size, WIDTH), np.float32)
    step = (_jax_step if name == "mil_jax" else _torch_step)(features, dropout)
    _timed(step)
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(_timed(step))


def _timed(step: Step) -> float:
    seconds: list[float] = []
    while sum(seconds) < SECONDS_PER_TURN or len(seconds) < 3:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _jax_step(features: np.ndarray, dropout: float) -> Step:
    import jax
    import jax.numpy as jnp

    from mil_jax import aggregators
    from mil_jax.bags import Bag
    from mil_jax.strategies.base import Batch, TrainState
    from mil_jax.strategies.supervised import Supervised
    from mil_jax.tasks.classification import Classification
    from mil_jax.training import optimizers
    from mil_jax.training.schedule import Schedule

    # One output and its logistic loss, written as binary cross entropy by the task's form for one label column.
    task = Classification(("positive",), "binary_cross_entropy", multi_label=True)
    widths = {"feature_dim": FEATURES, "attention_dim": ATTENTION, "gated": True}
    module = aggregators.create("abmil", task.num_outputs, **widths, dropout=dropout, attention_dropout=0.0)
    strategy = Supervised(module, task, optimizers.make(optimizers.OptimizerSettings()), Schedule())
    bag = Bag(features=jnp.asarray(features), mask=jnp.ones(len(features), bool))
    hyper = {"optimizer.lr": jnp.float32(LEARNING_RATE), "optimizer.weight_decay": jnp.float32(DECAY)}
    state = jax.jit(lambda key: strategy.init(key, bag, hyper, {}, None))(jax.random.key(0))
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.ones((1, 1)), weights=jnp.ones(1))
    batch = jax.device_put(batch)

    def one(state: TrainState, batch: Batch) -> TrainState:
        extras = {"lr": state.hyper["optimizer.lr"]}
        return strategy.step(state, batch, extras, jax.random.fold_in(jax.random.key(1), state.step))[0]

    program = jax.jit(one, donate_argnums=0).lower(state, batch).compile()

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(program(state, batch))

    return step


def _torch_step(features: np.ndarray, dropout: float) -> Step:
    import torch
    from torchmil.models import ABMIL

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, FEATURES), torch.nn.ReLU()]
    if dropout:
        layers.append(torch.nn.Dropout(dropout))
    feature_layer = torch.nn.Sequential(*layers)
    model = ABMIL(in_shape=(WIDTH,), att_dim=ATTENTION, gated=True, feat_ext=feature_layer).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    bag, label = torch.from_numpy(features)[None], torch.ones(1)
    mask = torch.ones(bag.shape[:2])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _, losses = model.compute_loss(label, bag, mask)
        sum(losses.values()).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    app.run(main)
