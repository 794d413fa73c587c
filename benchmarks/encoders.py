"""Tiles a second of CLAM's ResNet-50 (224 pixels, up to the third stage, float32) on two CPU threads, against the same network in PyTorch.

    python -m benchmarks.encoders --machine laptop            needs the extra `torch`, and `transformers`

PyTorch's network is that of `transformers`, without gradients, in the faster of its two memory layouts for each round. Ours is the program
of data_prep.encode, from 8-bit pixels to vectors; PyTorch's begins behind the preprocessing. Each works in a process of its own; they take
turns. Bar: our tiles a second over PyTorch's at least 0.9.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.common import MACHINE, in_turns, median_ratio, use_threads, write_result

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each; the median of their ratios counts.")
_BATCHES = flags.DEFINE_list("batches", ["16", "64"], "Tiles of a batch.")

THREADS, SIDE, BAR = 2, 224, 0.9
SECONDS_PER_TURN = 3.0

Step = Callable[[], Any]


def main(_: list[str]) -> None:
    use_threads(THREADS)
    figures, table = {}, []
    for batch in map(int, _BATCHES.value):
        seconds = in_turns(_steps, ("mil_jax", "torch"), (batch,), _ROUNDS.value, SECONDS_PER_TURN)
        ratio = median_ratio(seconds["torch"], seconds["mil_jax"])
        rates = {name: batch / statistics.median(values) for name, values in seconds.items()}
        figures[f"batch={batch}"] = {"ratio": ratio, "tiles_per_second": rates, "rounds": seconds}
        what = f"ResNet-50 up to the third stage, tiles/s over PyTorch's, batches of {batch}"
        shown = f"{ratio:.2f} ({rates['mil_jax']:.1f} / {rates['torch']:.1f} tiles/s)"
        table.append((what, f"at least {BAR:g}", shown))
        print(*table[-1], flush=True)
    write_result("encoders", MACHINE.value, figures, table)


def _steps(name: str, batch: int) -> list[Step]:
    """The steps of one library, in its process."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    return (_jax_steps if name == "mil_jax" else _torch_steps)(pixels)


def _jax_steps(pixels: np.ndarray) -> list[Step]:
    from data_prep.features.encoder import Encoding
    from mil_jax.encoders.registry import encoder_named
    from mil_jax.encoders.weights import load_weights
    from mil_jax.engine.runtime import keep_freed_memory

    keep_freed_memory()  # as the command does
    encoding = Encoding(*load_weights(encoder_named("resnet50_trunc"), "random"), len(pixels))
    return [lambda: list(encoding([(pixels, len(pixels))]))]


def _torch_steps(pixels: np.ndarray) -> list[Step]:
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    steps = []
    for layout in (torch.contiguous_format, torch.channels_last):
        # The config's default has the stride of a bottleneck in its 3 x 3 convolution, as ours.
        network = ResNetModel(ResNetConfig()).eval().to(memory_format=layout)
        stages = list(network.encoder.stages)[:3]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).contiguous(memory_format=layout)

        @torch.inference_mode()
        def step(network: Any = network, stages: Any = stages, images: Any = images) -> Any:
            x = network.embedder(images)
            for stage in stages:
                x = stage(x)
            return x.mean((2, 3))

        steps.append(step)
    return steps


if __name__ == "__main__":
    app.run(main)
