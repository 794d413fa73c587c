"""PyTorch state dicts -> parameters of an aggregator, strictly, and back.

The table of names is the aggregator's own (`module.state_dict_map(variant)`); PyTorch's Linear weights are [out,
in], Conv weights [out, in, height, width]. Wrappers of published files are taken off: a dict under "model" or
"state_dict", a dict per network, a prefix `module.` or `model.` before every name, and names that a later release of the
same code changed. Of DINO's checkpoints the teacher is read, without its head.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag
from mil_jax.errors import DataError
from mil_jax.interop import safetensors
from mil_jax.interop.array_files import load_torch, numpy_of, open_arrays
from mil_jax.types import PyTree

StateDict = dict[str, np.ndarray]

_WRAPPERS = ("model", "state_dict", "teacher")  # DINO saves the student, too; the teacher is what is used
_PREFIXES = ("module.", "model.")
_BACKBONE, _HEAD = "backbone.", "head."  # DINO: an encoder, and the head that it was pretrained with
_INNER_WRAPPERS = {"attention_net.module.": "attention_net."}  # CLAM, where a part alone was a DataParallel
_BUFFERS = ("instance_loss_fn.labels",)  # CLAM: the classes 0, 1, ... of its instance loss
# MHIM-MIL, branch v1 -> main; DSMIL, with an image encoder -> without.
_RENAMED = {"patch_to_emb.": "feature.", "i_classifier.fc.": "i_classifier.fc.0."}
# Without dropout the same Sequential is one shorter, so its last Linear has another number.
_WITHOUT_DROPOUT = {
    "head.2.": "head.3.",
    "global_attn.module.2.": "global_attn.module.3.",
    "attention_net.2.module.2.": "attention_net.3.module.3.",
    "attention_net.2.": "attention_net.3.",
}

_MOST_NAMES = 6  # of a list in a message

_Transform = Callable[[np.ndarray], np.ndarray]
_TRANSFORMS: dict[str, tuple[_Transform, _Transform]] = {
    "same": (lambda w: w, lambda w: w),
    "linear": (np.transpose, np.transpose),
    "conv": (lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)),
    "token": (lambda w: w.reshape(-1), lambda w: w[None, None]),  # [1, 1, width] -> [width]
    "tokens": (lambda w: w[0], lambda w: w[None]),  # [1, tokens, width] -> [tokens, width]
    "conv1d": (lambda w: w.transpose(1, 2, 0), lambda w: w.transpose(2, 0, 1)),  # [out, in, width] -> [in, width, out]
}


class Importable(Protocol):
    """What an aggregator offers for import (see `Aggregator`): its table of names, the published entries that are not read, and the
    shape of the instances that parameters fit.
    """

    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]: ...

    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]: ...

    def feature_shape(self, params: PyTree) -> tuple[int, ...]: ...

    def init(self, rngs: Any, *args: Any) -> Any: ...


def load_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Arrays by name from a file written by `torch.save` (read with `weights_only=True`), as safetensors, or by `numpy.savez`.

    Raises DataError when the file cannot be read as one of these, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return safetensors.load(path)
    if path.suffix == ".npz":
        arrays = open_arrays(path)
        return {name: arrays.read(name) for name in arrays.headers}
    content = load_torch(path, [argparse.Namespace])  # DINO saves its settings, too
    content = _unwrap(content)
    if not isinstance(content, Mapping) or not all(hasattr(value, "is_floating_point") for value in content.values()):
        raise DataError(f"{path}: holds no state dict (a mapping from names to tensors)")
    try:
        arrays_by_name = {str(name): numpy_of(value, str(name)) for name, value in content.items()}
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as a PyTorch checkpoint ({error})") from error
    return {
        name: array.astype(np.float32) if array.dtype.kind == "f" else array for name, array in arrays_by_name.items()
    }


def import_state_dict(module: Importable, state_dict: Mapping[str, Any], variant: str) -> PyTree:
    """Parameters of `module` from a state dict of the published `variant` (names of `aggregators.variants()`).

    Raises DataError naming missing, unexpected and wrongly shaped entries; ConfigError for an unknown variant.
    """
    mapping = module.state_dict_map(variant)
    unused = module.unused_entries(variant)
    arrays = _canonical(_unwrap(state_dict), {*mapping, *unused})
    arrays = {name: value for name, value in arrays.items() if name not in unused}
    missing = sorted(set(mapping) - set(arrays))
    unexpected = sorted(set(arrays) - set(mapping))
    if missing or unexpected:
        raise _mismatch(variant, missing=missing, unexpected=unexpected)
    params: dict[str, Any] = {}
    for name, (path, transform) in mapping.items():
        array = np.asarray(arrays[name], np.float32)
        if array.ndim != {"linear": 2, "conv": 4, "conv1d": 3, "token": 3, "tokens": 3}.get(transform, array.ndim):
            raise _mismatch(variant, shapes=[f"{name} {list(array.shape)}"])
        *folders, leaf = path.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = jnp.asarray(_TRANSFORMS[transform][0](array))
    _check_shapes(module, params, variant)
    return params


def export_state_dict(module: Importable, params: PyTree, variant: str) -> StateDict:
    """The inverse of `import_state_dict`: float32 arrays by published name, ready for `torch.from_numpy`.

    Parameters that the reference has and never reads are zeros.
    """
    exported = {name: np.zeros(shape, np.float32) for name, shape in module.unused_entries(variant).items()}
    for name, (path, transform) in module.state_dict_map(variant).items():
        value = params
        for part in path.split("/"):
            if part not in value:
                raise DataError(f"parameter {path} of variant {variant!r} does not exist in this model")
            value = value[part]
        exported[name] = np.ascontiguousarray(_TRANSFORMS[transform][1](np.asarray(value, np.float32)))
    return exported


def _unwrap(content: Any) -> Any:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping) and content and all(isinstance(part, Mapping) for part in content.values()):
        # DTFD saves each of its networks as a state dict of its own; any of them may have been a DataParallel.
        parts = {entry: _without_prefix(dict(part), "module.") for entry, part in content.items()}
        content = {f"{entry}.{name}": value for entry, part in parts.items() for name, value in part.items()}
    return content


def _without_prefix(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Names without `prefix`, where all have it."""
    if arrays and all(name.startswith(prefix) for name in arrays):
        return {name.removeprefix(prefix): value for name, value in arrays.items()}
    return arrays


def _canonical(state_dict: Mapping[str, Any], expected: set[str]) -> dict[str, Any]:
    """Names without wrappers' prefixes; old names become new ones only where the new one is expected and absent."""
    arrays = dict(state_dict)
    for prefix in _PREFIXES:
        arrays = _without_prefix(arrays, prefix)
    if any(name.startswith(_BACKBONE) for name in arrays):
        arrays = {name.removeprefix(_BACKBONE): x for name, x in arrays.items() if not name.startswith(_HEAD)}
    arrays = {name: value for name, value in arrays.items() if name not in _BUFFERS}
    for old, new in _INNER_WRAPPERS.items():
        arrays = {new + name.removeprefix(old) if name.startswith(old) else name: x for name, x in arrays.items()}
    for old, new in {**_RENAMED, **_WITHOUT_DROPOUT}.items():
        for name in [name for name in arrays if name.startswith(old) and name not in expected]:
            target = new + name.removeprefix(old)
            if target in expected and target not in arrays:
                arrays[target] = arrays.pop(name)
    return arrays


def _check_shapes(module: Importable, params: PyTree, variant: str) -> None:
    try:
        feature_shape = module.feature_shape(params)
    except KeyError as error:
        raise DataError(
            f"variant {variant!r} does not describe this model: it has no {error}; build the model with its fields"
        ) from error
    bag = Bag(
        jax.ShapeDtypeStruct((8, *feature_shape), jnp.float32),
        jax.ShapeDtypeStruct((8,), jnp.bool_),
        neighbors=jax.ShapeDtypeStruct((8, 1), jnp.int32),  # for those that read a graph
    )
    expected = jax.eval_shape(lambda bag: module.init(jax.random.key(0), bag)["params"], bag)
    names = {path: name for name, (path, _) in module.state_dict_map(variant).items()}
    found, wanted = _flat(params), _flat(expected)
    if absent := sorted(set(wanted) ^ set(found)):
        raise DataError(
            f"variant {variant!r} does not describe this model: parameters {', '.join(absent)} are in one of them "
            "only; build the model with the fields of the variant"
        )
    wrong = [
        f"{names[path]} {list(found[path].shape)} as {path}, expected {list(wanted[path].shape)}"
        for path in found
        if found[path].shape != wanted[path].shape
    ]
    if wrong:
        raise _mismatch(variant, shapes=wrong)


def _flat(tree: PyTree) -> dict[str, Any]:
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _mismatch(variant: str, *, missing: Any = (), unexpected: Any = (), shapes: Any = ()) -> DataError:
    parts = [
        f"{what}: {', '.join(names[:_MOST_NAMES])}{f' and {len(names) - _MOST_NAMES} more' if len(names) > _MOST_NAMES else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if names
    ]
    return DataError(f"the state dict does not fit variant {variant!r}; {'; '.join(parts)}")
