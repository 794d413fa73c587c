"""The contract of aggregators: one class lists what strategies, training and import may ask of them."""

from __future__ import annotations

import ast
from pathlib import Path

import mil_jax
from mil_jax import aggregators
from mil_jax.aggregators import Aggregator

PACKAGE = Path(mil_jax.__file__).parent
HOOKS = {name for name in vars(Aggregator) if not name.startswith("_")}


def looked_for(source: str) -> list[int]:
    """The lines that ask by name whether there is a hook."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr")
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value in HOOKS
    ]


def test_every_registered_class_is_an_aggregator():
    classes = [type(aggregators.create(name, 2)) for name in aggregators.names()]
    assert len(classes) >= 13
    assert all(issubclass(one, Aggregator) for one in classes)


def test_no_published_form_is_that_of_two_aggregators():
    classes = [type(aggregators.create(name, 2)) for name in aggregators.names()]
    assert sum(len(one.variants) for one in classes) == len(aggregators.variants()) >= 30


def test_hooks_are_attributes_that_nobody_has_to_look_for():
    assert looked_for("x\nhasattr(module, 'training_loss') or getattr(module, 'strategy', '')") == [2, 2]
    found = {path.name: lines for path in PACKAGE.rglob("*.py") if (lines := looked_for(path.read_text("utf-8")))}
    assert not found
