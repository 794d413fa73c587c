"""Aggregators are found by name, and impossible settings are refused in one sentence."""

from __future__ import annotations

import pytest

from mil_jax import aggregators
from mil_jax.errors import ConfigError


def test_every_name_builds_with_its_defaults():
    names = aggregators.names()
    assert len(names) >= 13
    for name in names:
        assert aggregators.create(name, 2).num_outputs == 2


def test_every_variant_builds():
    variants = aggregators.variants()
    assert len(variants) >= 34
    for name, fields in variants.values():
        created = aggregators.create(name, 2, **fields)
        assert fields.items() <= vars(created).items()


def test_default_fields_are_those_that_create_accepts():
    assert len(aggregators.names()) >= 13
    for name in aggregators.names():
        fields = aggregators.default_fields(name)
        assert "num_outputs" not in fields
        assert aggregators.create(name, 2, **fields) == aggregators.create(name, 2)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'abmil'"):
        aggregators.create("abmill", 2)


def test_an_unknown_field_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"aggregator\.atention_dim .* did you mean 'attention_dim'"):
        aggregators.create("abmil", 2, atention_dim=3)


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("abmil", {"feature_layer": "resnet"}, "choose one of linear, none, lenet"),
        ("abmil", {"feature_activation": "elu"}, "choose one of relu, gelu"),
        ("abmil", {"attention_activation": "sigmoid"}, "choose one of relu, gelu, tanh"),
        ("abmil", {"initializer": "zeros"}, "choose one of torch, xavier_normal, kaiming_uniform"),
        ("abmil", {"dropout": 1.0}, r"number in \[0, 1\)"),
        ("abmil", {"attention_dropout": -0.1}, r"number in \[0, 1\)"),
        ("abmil", {"attention_dim": 0}, "positive whole number"),
        ("abmil", {"feature_layer": "none"}, "set it to 0"),
        ("max_pooling", {"choose": "best"}, "choose one of class, positive, any"),
        ("mean_pooling", {"feature_dim": 1.5}, "positive whole number"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name, fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aggregators.create(name, 2, **fields)


def test_choosing_the_positive_class_needs_two_outputs():
    with pytest.raises(ConfigError, match="two outputs, not 3"):
        aggregators.create("max_pooling", 3, choose="positive")


def test_a_folder_that_is_added_later_is_searched_too(tmp_path, monkeypatch):
    assert "added_later" not in aggregators.names()
    (tmp_path / "added_later_module.py").write_text(
        "from mil_jax.aggregators.linear import Linear\n\nAGGREGATORS = {'added_later': Linear}\n"
    )
    monkeypatch.setattr(aggregators, "__path__", [*aggregators.__path__, str(tmp_path)])
    assert aggregators.create("added_later", 2).num_outputs == 2
