"""The usual methods on your label columns, all with the same splits: `python -m mil_jax.benchmark --config configs/benchmarks/usual.py`.

Each method is trained by its own config, with validation carved from the training patients; settings given on the command line hold for
all. To choose other methods take a copy of this file, or --methods. Methods that need graphs or regions (Patch-GCN, HIPT) need them of
the shards, and are left out here.
"""

from mil_jax.cli.benchmark_plan import Benchmark, Method, Protocol


def get_benchmark() -> Benchmark:
    """The benchmark."""
    return Benchmark(
        name="benchmark",
        methods={
            "linear probe": Method("configs/linear_probe.py"),
            "mean pooling": Method("configs/mean_pooling.py"),
            "max pooling": Method("configs/max_pooling.py"),
            "ABMIL": Method("configs/abmil.py"),
            "CLAM-SB": Method("configs/clam_sb.py"),
            "CLAM-MB": Method("configs/clam_mb.py"),
            "DSMIL": Method("configs/dsmil.py"),
            "TransMIL": Method("configs/transmil.py"),
            "DTFD-MIL": Method("configs/dtfd.py"),
            "RRT-MIL": Method("configs/rrt.py"),
        },
        protocols={"clean": Protocol()},
    )
