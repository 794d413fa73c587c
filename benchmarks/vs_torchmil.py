"""One training step (forward, backward, update) of each model that torchmil has too, against torchmil's, on two CPU threads.

    python -m benchmarks.vs_torchmil --machine laptop            needs the extra `torchmil`

One bag of N instances of 1,024 features a step, float32, Adam with L2, the widths in `MODELS`; without dropout and with it (0.25 after
the feature layer; TransMIL also 0.1 after each attention layer; Patch-GCN also 0.25 after each convolution with a norm and after the
layer over all depths). torchmil takes the feature layer as a module. Where its models differ, they do less: ABMIL's and CLAM's last
attention layer has no bias; TransMIL's attention has no convolution of the values and no output layer; DTFD-MIL's attentions have no
gate (but its tier 2 sends a gradient to tier 1, and ours does not). Patch-GCN's convolutions are a sum over the neighbours and one
layer, not a softmax over them and two (but the first has a norm); it knows one width for all its layers, so what lies behind its
convolutions is replaced by torchmil's layers of the published widths. The graph is of the 8 nearest tiles on a full grid.

Both have one output and a logistic loss; CLAM's instance loss and DTFD-MIL's activations compare two classes, so ours have two outputs
there. Each library works in a process of its own; they take turns. Bars: torchmil's time over ours at least 1.0 without dropout, 1.3
with; TransMIL 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.common import MACHINE, in_turns, median_ratio, use_threads, write_result

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each library; the median of their ratios counts.")
_SIZES = flags.DEFINE_list("sizes", ["1000", "4000", "10000"], "Instances of a bag.")
_MODELS = flags.DEFINE_list("models", [], "Only these; all when empty.")

THREADS, WIDTH, FEATURES = 2, 1024, 512
GRAPH_FEATURES, NEIGHBORS = 128, 8
DROPOUTS = (0.0, 0.25)
# So small that the weights hardly move: torchmil's smooth SVM stops with an error once some of its rows are well separated.
LEARNING_RATE, DECAY = 1e-8, 1e-5
SECONDS_PER_TURN = 0.6
LIBRARIES = ("mil_jax", "torchmil")
BARS = {0.0: 1.0, 0.25: 1.3}
TRANSMIL_BAR = 2.0

# Ours: the name of the aggregator and its fields beside the feature layer's. Dropout follows the feature layer.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "abmil": ("abmil", {"attention_dim": 384, "gated": True, "attention_dropout": 0.0}),
    "clam_sb": (
        "clam_sb",
        {"attention_dim": 256, "gated": True, "attention_dropout": 0.0, "num_sampled": 8, "subtyping": True},
    ),
    "dsmil": ("dsmil", {"feature_layer": "linear", "query_dim": 128, "nonlinear_query": True}),
    "dtfd": ("dtfd", {"attention_dim": 128, "num_groups": 4, "distillation": "pooled"}),
    "patch_gcn": ("patch_gcn", {"hidden_dim": GRAPH_FEATURES, "num_convolutions": 3, "attention_dropout": 0.0}),
    "transmil": ("transmil", {"num_heads": 8, "num_landmarks": 256, "pinv_iterations": 6}),
}

Step = Callable[[], None]


def main(_: list[str]) -> None:
    use_threads(THREADS)
    figures, table = {}, []
    for model in _MODELS.value or MODELS:
        for size in map(int, _SIZES.value):
            for dropout in DROPOUTS:
                arguments = (model, size, dropout)
                seconds = in_turns(_steps, LIBRARIES, arguments, _ROUNDS.value, SECONDS_PER_TURN)
                ratio = median_ratio(seconds["torchmil"], seconds["mil_jax"])
                medians = {name: statistics.median(values) for name, values in seconds.items()}
                figures[f"{model}, N={size}, dropout={dropout}"] = {
                    "ratio": ratio,
                    "seconds": medians,
                    "rounds": seconds,
                }
                what = f"{model} step, torchmil's time over ours, N = {size:,}, dropout {dropout:g}"
                shown = f"{ratio:.2f} ({1e3 * medians['torchmil']:.0f} ms / {1e3 * medians['mil_jax']:.0f} ms)"
                bar = TRANSMIL_BAR if model == "transmil" else BARS[dropout]
                table.append((what, f"at least {bar:g}", shown))
                print(*table[-1], flush=True)
    write_result("vs_torchmil", MACHINE.value, figures, table)


def _steps(name: str, model: str, size: int, dropout: float) -> list[Step]:
    """The step of one library, in its process."""
    features = np.random.default_rng(0).standard_normal((size, WIDTH), np.float32)
    return [(_jax_step if name == "mil_jax" else _torch_step)(model, features, dropout)]


def _graph(size: int) -> np.ndarray:
    """The nearest tiles of `size` tiles on a square grid, row by row: [size, NEIGHBORS]."""
    from mil_jax.data.features.graphs import nearest_neighbors

    side = math.ceil(math.sqrt(size))
    row, column = np.divmod(np.arange(size), side)
    return nearest_neighbors(np.stack([column, row], axis=1), NEIGHBORS, "grid")


def _jax_step(model: str, features: np.ndarray, dropout: float) -> Step:
    import jax
    import jax.numpy as jnp

    from mil_jax import aggregators
    from mil_jax.bags import Bag
    from mil_jax.engine.runtime import keep_freed_memory
    from mil_jax.experiment.phases import strategy_class
    from mil_jax.strategies import optimizers
    from mil_jax.strategies.base import Batch, TrainState
    from mil_jax.strategies.lr_schedule import Schedule
    from mil_jax.tasks.classification import Classification
    from mil_jax.tasks.multilabel import MultiLabel

    keep_freed_memory()  # as every command does
    if model in ("clam_sb", "dtfd"):
        task, target = Classification(("0", "1"), "cross_entropy"), jnp.ones(1, jnp.int32)
    else:  # one output and its logistic loss, written as binary cross entropy by the task's form for one label column
        task, target = MultiLabel(("positive",)), jnp.ones((1, 1))
    name, fields = MODELS[model]
    if model == "transmil":
        fields = fields | {"attention_dropout": 0.1 if dropout else 0.0}
    graph = {"conv_dropout": dropout, "context_dropout": dropout}
    fields = fields | (graph if model == "patch_gcn" else {"feature_dim": FEATURES})
    fields = fields | {"feature_dropout" if model == "dtfd" else "dropout": dropout}
    module = aggregators.create(name, task.num_outputs, **fields)
    strategy = strategy_class(module)(module, task, optimizers.make(optimizers.OptimizerSettings()), Schedule())
    neighbors = jnp.asarray(_graph(len(features))) if model == "patch_gcn" else None
    bag = Bag(features=jnp.asarray(features), mask=jnp.ones(len(features), bool), neighbors=neighbors)
    hyper = {"optimizer.lr": jnp.float32(LEARNING_RATE), "optimizer.weight_decay": jnp.float32(DECAY)}
    state = jax.jit(lambda key: strategy.init(key, bag, hyper, {}, None))(jax.random.key(0))
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=target, weights=jnp.ones(1))
    batch = jax.device_put(batch)

    def one(state: TrainState, batch: Batch) -> TrainState:
        extras = {"lr": state.hyper["optimizer.lr"]}
        return strategy.step(state, batch, extras, jax.random.fold_in(jax.random.key(1), state.step))[0]

    program = jax.jit(one, donate_argnums=0).lower(state, batch).compile()

    def step() -> None:
        nonlocal state
        state = jax.block_until_ready(program(state, batch))

    return step


def _torch_step(model: str, features: np.ndarray, dropout: float) -> Step:
    import torch
    from torchmil import models

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, GRAPH_FEATURES if model == "patch_gcn" else FEATURES), torch.nn.ReLU()]
    if dropout:
        layers.append(torch.nn.Dropout(dropout))
    shared = {"in_shape": (WIDTH,), "feat_ext": torch.nn.Sequential(*layers)}
    takes_mask = model != "transmil"
    network = {
        "abmil": lambda: models.ABMIL(att_dim=384, gated=True, **shared),
        "clam_sb": lambda: models.CLAM_SB(att_dim=256, gated=True, k_sample=8, **shared),
        "dtfd": lambda: models.DTFDMIL(att_dim=128, n_groups=4, distill_mode="afs", **shared),
        "dsmil": lambda: models.DSMIL(att_dim=128, nonlinear_q=True, **shared),
        "patch_gcn": lambda: _torch_patch_gcn(dropout, **shared),
        "transmil": lambda: models.TransMIL(
            att_dim=FEATURES, n_heads=8, n_landmarks=256, dropout=0.1 if dropout else 0.0, **shared
        ),
    }[model]().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    bag, label = torch.from_numpy(features)[None], torch.ones(1)
    more = (torch.ones(bag.shape[:2]),) if takes_mask else ()
    if model == "patch_gcn":
        target, source = _graph(bag.shape[1]).ravel(), np.repeat(np.arange(bag.shape[1]), NEIGHBORS)
        places = torch.from_numpy(np.stack([np.zeros_like(source), target, source]))
        adjacency = torch.sparse_coo_tensor(places, torch.ones(len(source)), (1, bag.shape[1], bag.shape[1]))
        more = (adjacency.coalesce(), *more)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _, losses = network.compute_loss(label, bag, *more)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def _torch_patch_gcn(dropout: float, **shared: Any) -> Any:
    """torchmil's model with layers of the published widths behind its convolutions."""
    import torch
    from torchmil import models
    from torchmil.nn import AttentionPool

    width = 4 * GRAPH_FEATURES
    network = models.PatchGCN(n_gcn_layers=3, hidden_dim=GRAPH_FEATURES, dropout=dropout, **shared)
    layer = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Dropout(dropout))
    network.mlp = torch.nn.ModuleList([layer])
    network.pool = AttentionPool(in_dim=width, att_dim=width, gated=True)
    network.classifier = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    return network


if __name__ == "__main__":
    app.run(main)
