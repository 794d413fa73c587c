"""One parity case: what a reference implementation returned, and the rule that makes its parameters and inputs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity import fill


@dataclass(frozen=True)
class Case:
    """A case read from `path`; `arrays` are the stored values by name ("out/...", "grad/...", "grad_norm/...")."""

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> Case:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != "meta"}
            return cls(path, json.loads(str(stored["meta"])), arrays)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def method(self) -> str:
        return self.meta["method"]

    @property
    def variant(self) -> str:
        return self.meta.get("variant", "")

    @property
    def config(self) -> dict[str, Any]:
        return self.meta.get("config") or {}

    def input(self, name: str) -> np.ndarray:
        """The input `name`, float32."""
        return fill.input_array(name, self.meta["inputs"][name], self.meta["salt"])

    def state_dict(self, salt: str | None = None) -> dict[str, np.ndarray]:
        """Parameters by published name: real weights where the case names them (`params_from`), else by the rule.

        salt: another salt than the case's, for a second set of the same parameters (`params_salt`).
        Raises FileNotFoundError when the real weights are not on this machine.
        """
        if "params_from" in self.meta:
            with np.load(self._real_weights(), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        return fill.parameters(self.meta["params"], self.meta["salt"] if salt is None else salt)

    def _real_weights(self) -> Path:
        name = Path(self.meta["params_from"]).name
        roots = [self.path.resolve().parent.parent]
        if os.environ.get("MIL_JAX_SHARED"):
            roots.append(Path(os.environ["MIL_JAX_SHARED"]))
        for root in roots:
            if (root / "data" / "checkpoints" / name).is_file():
                return root / "data" / "checkpoints" / name
        raise FileNotFoundError(
            f"real weights {name} are not on this machine; set MIL_JAX_SHARED to the folder that has them"
        )
