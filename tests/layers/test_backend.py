"""Which GPUs are asked for TF32 products: one without them would refuse the program."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from mil_jax.layers import backend


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"compute_capability": "9.0"}, True),  # H200
        ({"compute_capability": "8.0"}, True),  # A100
        ({"compute_capability": "12.0"}, True),
        ({"compute_capability": "7.5"}, False),  # T4
        ({"compute_capability": "gfx90a"}, False),  # of another maker
        ({}, False),  # a CPU
    ],
)
def test_devices_with_tf32(device, expected, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**device)])
    assert backend.multiplies_tf32() == expected
