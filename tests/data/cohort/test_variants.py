"""Ids and classes that are written in two ways, and slides of other tissue."""

from __future__ import annotations

import pytest

from mil_jax.data.cohort.variants import class_key, patient_key, same_classes, same_patients, tissue_kinds


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P01", "p01"),
        ("P1", "P01"),
        ("7", "7.0"),
        ("7", "007"),
        ("TCGA-AA-0001", "tcga-aa-0001-01"),
        ("TCGA-AA-0001", "TCGA-AA-0001-01Z-00-DX1.F6E9A5DF"),
        ("Mu\u0308ller", "M\u00fcller"),
        ("a  b", "A b"),
        ("a\u00a0b", "a b"),
        ("P-01", "P_01"),
        ("P 01", "p01"),
        ("C3L\u201000123", "C3L-123"),
    ],
)
def test_one_person_has_one_key(one, other):
    assert patient_key(one) == patient_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "P10"),
        ("7", "70"),
        ("10", "1"),
        ("100", "1"),
        ("TCGA-AA-0001", "TCGA-AA-0002"),
        ("1.5", "1"),
        ("1-2", "12"),
        ("1.05", "1.5"),
        ("P1-2", "P12"),
        ("A-B1", "AB1"),
    ],
)
def test_two_people_have_two(one, other):
    assert patient_key(one) != patient_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("LUAD", "luad"), ("1", "1.0"), ("0", "False"), ("high grade", "high-grade"), ("wt", "wt "), ("1", "01")],
)
def test_one_class_has_one_key(one, other):
    assert class_key(one) == class_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("0", "0.5"), ("LUAD", "LUSC"), ("1", "10"), ("+", "-"), ("ER+", "ER-"), ("-1", "1")]
)
def test_two_classes_have_two(one, other):
    assert class_key(one) != class_key(other)


def test_what_may_be_one_is_said_with_counts():
    (sentence,) = same_patients(["P01", "p01", "P02", "7", "7.0"])
    assert sentence.startswith("Warning: 2 patients are written in two ways or more ('7' and '7.0', 'P01' and 'p01')")
    (sentence,) = same_classes("subtype", ["LUAD", "LUAD", "luad", "LUSC"])
    assert "'LUAD' (2) and 'luad' (1)" in sentence
    assert not same_patients(["P1", "P2"])
    assert not same_classes("subtype", ["A", "B"])


def test_normal_tissue_and_frozen_sections_are_told_by_barcodes():
    slides = ["TCGA-AA-0001-01Z-00-DX1.F6", "TCGA-AA-0001-11A-01-TS1", "TCGA-AA-0002-01A-01-BS1"]
    (sentence,) = tissue_kinds(slides)
    assert "1 frozen normal tissue, 1 diagnostic tumour, 1 frozen tumour" in sentence
    assert not tissue_kinds(slides[:1] * 2)
    assert not tissue_kinds(["TCGA-AA-0001", "S1"])
