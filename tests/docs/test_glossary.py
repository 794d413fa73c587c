"""Who searches by the field's words finds the file."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| ---")
]


@pytest.mark.parametrize(
    "word",
    [
        "early stopping",
        "checkpoint",
        "prefetch",
        "data loader",
        "inference",
        "sharding",
        "device mesh",
        "attention pooling",
        "metrics",
        "replica",
        "plan",
        "slot",
        "dispatch",
        "window",
        "ladder",
        "bucket",
        "residency",
        "bag",
        "instance",
        "law of the mask",
        "leak report",
        "protocol",
        "strategy",
        "phase",
    ],
)
def test_a_word_leads_to_a_place(word):
    (row,) = [row for row in ROWS if word in re.split(r", ", row[0])]
    assert re.search(r"`[\w/]+(\.py|/)`|\]\(", row[-1])


def test_every_place_exists():
    places = [place for row in ROWS for place in re.findall(r"`((?:mil_jax|data_prep|tests)/[\w./]+)`", row[-1])]
    assert len(places) > 50
    assert [place for place in places if not (ROOT / place).exists()] == []
