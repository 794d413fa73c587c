"""The tile encoders by the names that users know. A name fixes the architecture, the preprocessing, the output, its width, the size of
the tiles that it was trained on, and what it was pretrained on (a cohort among that is a leak).

Weights are not part of this library: each encoder reads its published file as it is. Figures are those of the model cards and of the
authors' own loading code; `usual_norm` was measured here, on 135 tiles of NCT-CRC-HE-100K. Bare architectures, without preprocessing, are
listed behind.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mil_jax.encoders import layouts
from mil_jax.encoders.resnet import ResNet
from mil_jax.encoders.swin import SwinTransformer
from mil_jax.encoders.vit import VisionTransformer
from mil_jax.errors import ConfigError

BILINEAR, BICUBIC = "bilinear", "bicubic"
INTERPOLATIONS = (BILINEAR, BICUBIC)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE_TOLERANCE = 0.2  # of a tile's edge, as a share, from what an encoder was trained on


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a tile's pixels: resized to `resize` x `resize`, cut to the middle `crop` x `crop`, scaled to [0, 1], less the mean,
    over the deviation (of the three channels).
    """

    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = BILINEAR
    resize: int = 0

    @property
    def resized(self) -> int:
        """Edge of a tile before it is cut."""
        return self.resize or self.crop


@dataclass(frozen=True)
class TileEncoder:
    """An encoder and how it is to be used.

    module: from a bag of images to a bag of vectors. output: which of its numbers are the vector. width: of the vector. tile_um: edge of
    the tiles it was trained on, in micrometres; None = no such size. pretrained_on: for the leak report. weights: where the file is
    published. usual_norm: smallest and largest norm of its vectors, where it was measured. reads: a published state dict to the module's
    names.
    """

    name: str
    module: Any
    preprocessing: Preprocessing
    output: str
    width: int
    tile_um: float | None
    pretrained_on: str
    weights: str = ""
    usual_norm: tuple[float, float] | None = None
    reads: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=layouts.from_transformers)


def _vit(size: str, patch_size: int, **fields: Any) -> VisionTransformer:
    dim, depth, heads = {
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "giant": (1536, 40, 24),
    }[size]
    sizes: dict[str, Any] = {"dim": dim, "depth": depth, "num_heads": heads, "table_side": 224 // patch_size}
    return VisionTransformer(**(sizes | {"patch_size": patch_size, "interpolation": "timm"} | fields))


_GATED = {"gated": True, "layer_scale": True}
_CLASS_TOKEN = "class token behind the last norm"
_HUGE = {"dim": 1280, "depth": 32, "num_heads": 16, "hidden_dim": 3416}

ENCODERS: dict[str, TileEncoder] = {
    encoder.name: encoder
    for encoder in (
        TileEncoder(
            "resnet50_trunc",
            ResNet(50, stages=3),
            Preprocessing(224),
            "mean of the third stage's feature map",
            1024,
            None,
            "ImageNet-1k (photographs)",
            "timm/resnet50.tv_in1k, or torchvision's ResNet50_Weights.IMAGENET1K_V1",
            reads=dict,
        ),
        TileEncoder(
            "ctranspath",
            SwinTransformer(),
            Preprocessing(224),
            "mean of the tokens behind the last norm",
            768,
            256.0,
            "TCGA and PAIP",
            "ctranspath.pth of Xiyue-Wang/TransPath, or CHIEF_CTransPath.pth",
            reads=layouts.from_newer_timm_swin,
        ),
        TileEncoder(
            "uni_v1",
            _vit("large", 16, layer_scale=True),
            Preprocessing(224),
            _CLASS_TOKEN,
            1024,
            128.0,
            "Mass-100K (Mass General Brigham, GTEx)",
            "MahmoodLab/UNI, pytorch_model.bin",
            usual_norm=(36.3, 40.4),
        ),
        TileEncoder(
            "uni_v2",
            _vit("giant", 14, depth=24, hidden_dim=4096, num_registers=8, positions_in_front=0, **_GATED),
            Preprocessing(224),
            _CLASS_TOKEN,
            1536,
            128.0,
            "350,000 slides of Mass General Brigham, H&E and immunohistochemistry",
            "MahmoodLab/UNI2-h, pytorch_model.bin",
        ),
        TileEncoder(
            "virchow2",
            _vit("giant", 14, num_registers=4, positions_in_front=5, output="class_and_mean", **_HUGE, **_GATED),
            Preprocessing(224, interpolation=BICUBIC),
            "class token, then the mean of the patches' tokens, behind the last norm",
            2560,
            112.0,
            "3.1 million slides of Memorial Sloan Kettering",
            "paige-ai/Virchow2, pytorch_model.bin",
        ),
        TileEncoder(
            "hoptimus0",
            _vit("giant", 14, hidden_dim=4096, num_registers=4, positions_in_front=0, **_GATED),
            Preprocessing(224, (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
            _CLASS_TOKEN,
            1536,
            112.0,
            "500,000 slides that are not public",
            "bioptimus/H-optimus-0, pytorch_model.bin",
        ),
        TileEncoder(
            "gigapath",
            _vit("giant", 16, hidden_dim=4096, **_GATED),
            Preprocessing(224, interpolation=BICUBIC, resize=256),
            _CLASS_TOKEN,
            1536,
            128.0,
            "171,189 slides of Providence",
            "prov-gigapath/prov-gigapath, pytorch_model.bin",
        ),
        TileEncoder(
            "conch_v15",
            _vit("large", 16, layer_scale=True, interpolation="dino", output="query"),
            Preprocessing(448),
            "all tokens pooled by the tower's query for contrast, and its norm",
            768,
            256.0,
            "slides and captions of Mass General Brigham, and articles; no public benchmark, say the authors",
            "MahmoodLab/conchv1_5, pytorch_model_vision.bin",
            reads=layouts.from_conch,
        ),
        TileEncoder(
            "phikon",
            _vit("base", 16, epsilon=1e-12),
            Preprocessing(224),
            _CLASS_TOKEN,
            768,
            112.0,
            "TCGA (6,093 slides of 13 cancers)",
            "owkin/phikon, pytorch_model.bin",
        ),
        TileEncoder(
            "hipt_vit256",
            _vit("small", 16, interpolation="dino"),
            Preprocessing(256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            _CLASS_TOKEN,
            384,
            128.0,
            "TCGA (10,678 slides of 33 cancers)",
            "mahmoodlab/HIPT, vit256_small_dino.pth",
        ),
    )
}

ARCHITECTURES: dict[str, Any] = {
    "resnet18": ResNet(18),
    "resnet34": ResNet(34),
    "resnet50": ResNet(50),
    "swin_tiny": SwinTransformer(),
    **{
        f"vit_{size}_patch{patch}": _vit(size, patch)
        for size in ("small", "base", "large", "giant")
        for patch in (8, 14, 16)
    },
}
POOLS = ("class", "class_and_mean", "mean")


def encoder_named(name: str) -> TileEncoder:
    """A named encoder. Raises ConfigError for an unknown name, with the nearest known one."""
    if name in ENCODERS:
        return ENCODERS[name]
    near = difflib.get_close_matches(name, [*ENCODERS, *ARCHITECTURES], 1)
    if near:
        raise ConfigError(f"encoder {name!r} is not known; did you mean {near[0]!r}?")
    raise ConfigError(f"encoder {name!r} is not known; known are {', '.join(ENCODERS)}, and {', '.join(ARCHITECTURES)}")


def bare_encoder(architecture: str, preprocessing: Preprocessing, pool: str) -> TileEncoder:
    """An architecture of `ARCHITECTURES` with preprocessing and output of the user's own.

    Raises ConfigError for a pool that the architecture has not, and for images that it cannot read.
    """
    module, size = ARCHITECTURES[architecture], preprocessing.crop
    transformer = isinstance(module, VisionTransformer)
    pools = POOLS[:2] if transformer else POOLS[2:]
    if pool not in pools:
        raise ConfigError(f"--pool={pool} is not what {architecture} has: choose {' or '.join(pools)}")
    if transformer:
        module = module.clone(output=pool)
        width, step = module.dim * (2 if pool == "class_and_mean" else 1), module.patch_size
    elif isinstance(module, SwinTransformer):
        width, step = 8 * module.dim, module.feature_shape({"stem_0": {"kernel": np.zeros((3, 3, 3, 1))}})[0]
    else:
        width, step = module.widths[module.stages - 1] * module.expansion, 32
    if size % step:
        raise ConfigError(f"--input-size={size} does not fit {architecture}, which reads multiples of {step} pixels")
    output = {"class": _CLASS_TOKEN, "class_and_mean": "class token, then the mean of the patches' tokens"}.get(
        pool, "mean of the last feature map"
    )
    return TileEncoder(architecture, module, preprocessing, output, width, None, "unknown")


def fitted_to(encoder: TileEncoder, arrays: Mapping[str, Any]) -> TileEncoder:
    """A bare vision transformer with the fields that its state dict says: registers, layer scale, gates, position table."""
    module = encoder.module
    positions, contract = arrays.get("pos_embed"), arrays.get("blocks.0.mlp.fc2.weight")
    expand = arrays.get("blocks.0.mlp.fc1.weight")
    if not isinstance(module, VisionTransformer) or encoder.name in ENCODERS:
        return encoder
    if positions is None or expand is None or contract is None or np.ndim(positions) != 3 or np.ndim(contract) != 2:
        return encoder  # not such a state dict: the strict import says so
    registers = arrays["reg_token"].shape[1] if "reg_token" in arrays else 0
    rows = positions.shape[1]
    sides = {front: round(max(rows - front, 0) ** 0.5) for front in (1, 0, 1 + registers)}
    in_front = next((front for front, side in sides.items() if side**2 == rows - front), 1)
    fields: dict[str, Any] = {
        "num_registers": registers,
        "positions_in_front": in_front,
        "table_side": sides[in_front],
        "layer_scale": "blocks.0.ls1.gamma" in arrays,
        "hidden_dim": contract.shape[1],
        "gated": expand.shape[0] == 2 * contract.shape[1],
    }
    return dataclasses.replace(encoder, module=module.clone(**fields))


def size_warning(encoder: TileEncoder, tile_um: float) -> str:
    """A sentence where tiles of that edge are unlike those that the encoder was trained on; NaN = unknown size."""
    if encoder.tile_um is None:
        return ""
    if np.isnan(tile_um):
        return f"how large the tiles are in micrometres is not known; {encoder.name} was trained on tiles of {encoder.tile_um:g} um"
    if abs(tile_um / encoder.tile_um - 1.0) <= SIZE_TOLERANCE:
        return ""
    return (
        f"tiles are {tile_um:.4g} um wide, but {encoder.name} was trained on tiles of {encoder.tile_um:g} um: tile again, "
        "or expect worse features"
    )
