"""The whole way on slides that are drawn: slides -> tiles -> features -> shards -> a trained model, by the commands that a user would type.

    python scripts/slides_to_model.py --out demo/                 twenty slides, ResNet-50; under 10 minutes on 2 cores
    python scripts/slides_to_model.py --out demo/ --small         eight small ones and a small network, in seconds

The encoder's weights are random (`--weights=FILE` names real ones, of CLAM's ResNet-50): features of random weights see colours and
textures, which is enough to tell drawn lesions; on real tissue it would not be.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Runs the commands; returns the exit code of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write everything to")
    parser.add_argument("--count", type=int, default=0, help="slides to draw; default: 20, with --small 8")
    parser.add_argument("--weights", default="random", help="file of ResNet-50's weights; default: random")
    parser.add_argument("--small", action="store_true", help="small slides, tiles and network")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    for command in commands(given.out, given.count or (8 if given.small else 20), given.weights, given.small):
        print(f"\n$ python -m {shlex.join(command)}", flush=True)
        before = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode
        if code:
            return code
        print(f"({time.monotonic() - before:.0f} s)", flush=True)
    print(f"\nAll in {time.monotonic() - begun:.0f} s; the results are in {given.out / 'run'}")
    return 0


def commands(out: Path, count: int, weights: str, small: bool) -> list[list[str]]:
    """The commands, without `python -m`."""
    out = out.absolute()
    size = ["--width=1024", "--height=1024"] if small else []
    tiles = ["--mpp=0.5", f"--tile={128 if small else 256}", "--min-tissue=0.5"]
    encoder = ["--encoder=resnet50_trunc", f"--weights={weights}"]
    training: list[str] = []
    if small:
        preprocessing = ["--input-size=32", "--mean=0.485,0.456,0.406", "--std=0.229,0.224,0.225", "--pool=mean"]
        encoder = ["--encoder=resnet18", f"--weights={weights}", "--batch-size=32", *preprocessing]
        training = ["--config.train.epochs=10", "--config.train.monitor=last", "--config.train.patience=0"]
        training += ["--config.splits.folds=2", "--config.aggregator.feature_dim=32"]
    data = [f"--config.data.shards={out}/shards", f"--config.data.labels={out}/slides/labels.csv"]
    return [
        ["data_prep.demo_slides", f"--out={out}/slides", f"--count={count}", *size],
        ["data_prep.tile", f"--slides={out}/slides", f"--out={out}/prepared", *tiles],
        ["data_prep.encode", f"--work={out}/prepared", *encoder],
        ["data_prep.shard", f"--features={out}/prepared/features", f"--out={out}/shards", "--overwrite"],
        ["data_prep.inspect", f"--shards={out}/shards"],
        [
            "mil_jax.train",
            "--config=configs/abmil.py",
            *data,
            "--config.data.target=label",
            "--config.data.positive=lesion",
            *training,
            f"--config.run={out}/run",
            "--overwrite",
        ],
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
