"""State dicts as they are published -> the names of timm, which the encoders' own tables map.

`transformers` of Hugging Face names the parts of a vision transformer otherwise and keeps queries, keys and values apart; newer timm
counts Swin's mergings from the stage behind them. Nothing is guessed: what has other names stays as it is, and the strict import names
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mil_jax.layers.vit import linear_resize

Arrays = dict[str, np.ndarray]

_TRANSFORMERS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
    r"layernorm\.(\w+)": r"norm.\1",
    r"encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.(\w+)": r"blocks.\1.norm1.\2",
    r"encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.(\w+)": r"blocks.\1.norm2.\2",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2|mlp\.weights_out)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
}
_QUERY = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(\w+)")
_NOT_READ = re.compile(r"pooler\.dense\.\w+|embeddings\.mask_token")  # heads of pretraining


def from_transformers(arrays: Mapping[str, Any]) -> Arrays:
    """A ViT or DINOv2 of Hugging Face's `transformers` by timm's names; state dicts by other names pass through."""
    if "embeddings.cls_token" not in arrays:
        return dict(arrays)
    renamed: Arrays = {}
    for name, array in arrays.items():
        if _NOT_READ.fullmatch(name) or re.search(r"\.attention\.attention\.(key|value)\.", name):
            continue
        if query := _QUERY.fullmatch(name):
            parts = [arrays.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            if all(part is not None for part in parts):
                renamed[f"blocks.{query[1]}.attn.qkv.{query[2]}"] = np.concatenate(parts)  # type: ignore[arg-type]
            continue
        for pattern, ours in _TRANSFORMERS.items():
            if re.fullmatch(pattern, name):
                renamed[re.sub(pattern, ours, name)] = array
                break
        else:
            renamed[name] = array
    return renamed


def from_newer_timm_swin(arrays: Mapping[str, Any]) -> Arrays:
    """A Swin transformer whose mergings stand at the beginning of a stage (timm 0.9 and later) by the names of timm 0.5."""
    if any(name.startswith("layers.0.downsample.") for name in arrays):
        return dict(arrays)
    merging = re.compile(r"layers\.(\d+)\.downsample\.(.+)")
    return {
        f"layers.{int(found[1]) - 1}.downsample.{found[2]}" if (found := merging.fullmatch(name)) else name: array
        for name, array in arrays.items()
    }


def from_conch(arrays: Mapping[str, Any], side: int = 14) -> Arrays:
    """CONCH v1.5's visual tower with its position table resized to side x side, bilinearly, as its own code does before it interpolates."""
    name = "trunk.pos_embed"
    table = arrays.get(name)
    if table is None or np.ndim(table) != 3:
        return dict(arrays)
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored == side or stored**2 != table.shape[1] - 1:
        return dict(arrays)
    matrix = linear_resize(stored, side)
    square = np.asarray(table[0, 1:], np.float64).reshape(stored, stored, -1)
    fitted = np.einsum("in,nmc,jm->ijc", matrix, square, matrix).reshape(side**2, -1)
    return {**arrays, name: np.concatenate([table[:, :1], fitted[None]], axis=1).astype(np.float32)}
