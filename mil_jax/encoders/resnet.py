"""Residual networks (He et al. 2016) of 18, 34 or 50 layers as encoders: an image -> the mean of its last feature map.

CLAM's encoder is the one of 50 layers cut behind the third stage: 1,024 values instead of 2,048. The stride of a bottleneck is in its
3 x 3 convolution, as in torchvision and timm; batch norms use their running statistics. Everything is evaluation: nothing is trained here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.convolution import NormedConvolutionParameters, max_pool
from mil_jax.types import Array

BLOCKS: dict[int, tuple[int, ...]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """Images [N, H, W, 3] of a bag -> their vectors [N, E].

    layers: 18, 34 or 50. stages: how many of the four are used; E is the width of the last of them.
    """

    layers: int = 50
    stages: int = 4
    widths: tuple[int, ...] = WIDTHS

    images_side: ClassVar[int] = 224

    @property
    def expansion(self) -> int:
        """Channels that leave a block, over those inside it."""
        return 4 if self.layers >= 50 else 1

    @nn.compact
    def __call__(self, bag: Bag) -> Bag:
        if bag.features.ndim != 4:
            raise ConfigError(
                f"the encoder reads images [N, H, W, 3], but the bag has the shape {list(bag.features.shape)}"
            )
        x = masked.zero_padding(bag.features, bag.mask)
        x = jax.nn.relu(self._convolution("stem", 7, x.shape[-1], self.widths[0])(x, 2))
        x = max_pool(x)
        for stage in range(self.stages):
            for number in range(BLOCKS[self.layers][stage]):
                x = self._block(
                    f"stage_{stage}_block_{number}", x, self.widths[stage], 2 if stage and not number else 1
                )
        return bag.replace(features=masked.zero_padding(jnp.mean(x, axis=(1, 2)), bag.mask))

    def _convolution(self, name: str, size: int, inputs: int, outputs: int) -> Any:
        return NormedConvolutionParameters(outputs, name=name)(size, inputs)

    def _block(self, name: str, x: Array, width: int, stride: int) -> Array:
        """x [N, H, W, C] -> [N, H / stride, W / stride, expansion * width]."""
        inputs, outputs = x.shape[-1], width * self.expansion
        shortcut = x
        if stride > 1 or inputs != outputs:
            shortcut = self._convolution(f"{name}_shortcut", 1, inputs, outputs)(x, stride)
        for number, (size, step) in enumerate(self._inside(stride), start=1):
            last = number == len(self._inside(stride))
            x = self._convolution(f"{name}_conv_{number}", size, x.shape[-1], outputs if last else width)(x, step)
            x = x if last else jax.nn.relu(x)
        return jax.nn.relu(x + shortcut)

    def _inside(self, stride: int) -> tuple[tuple[int, int], ...]:
        """(size of the kernel, stride) of the convolutions of a block."""
        return ((1, 1), (3, stride), (1, 1)) if self.layers >= 50 else ((3, stride), (3, 1))

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform): the names of torchvision and timm."""
        del variant
        return self._map(self.stages)

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """What published files hold besides: counters of the norms, stages that are cut off, the classifier of ImageNet."""
        del variant
        unused: dict[str, tuple[int, ...]] = {}
        for name in self._map(4):
            if name.endswith("running_mean"):
                unused[name.replace("running_mean", "num_batches_tracked")] = ()
        unused |= dict.fromkeys(set(self._map(4)) - set(self._map(self.stages)), ())
        return unused | {"fc.weight": (), "fc.bias": ()}

    @nn.nowrap
    def feature_shape(self, params: Any) -> tuple[int, ...]:
        """Shape of the images that `params` were made for."""
        return (self.images_side, self.images_side, params["stem"]["kernel"].shape[2])

    @nn.nowrap
    def _map(self, stages: int) -> dict[str, tuple[str, str]]:
        published = NormedConvolutionParameters.published
        mapping = published("conv1", "bn1", "stem")
        inputs = self.widths[0]
        for stage in range(stages):
            outputs = self.widths[stage] * self.expansion
            for number in range(BLOCKS[self.layers][stage]):
                theirs, ours = f"layer{stage + 1}.{number}", f"stage_{stage}_block_{number}"
                for place in range(1, len(self._inside(1)) + 1):
                    mapping |= published(f"{theirs}.conv{place}", f"{theirs}.bn{place}", f"{ours}_conv_{place}")
                if not number and (stage or inputs != outputs):
                    mapping |= published(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}_shortcut")
            inputs = outputs
        return mapping
