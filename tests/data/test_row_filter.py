"""Filters keep the rows that their words say, refuse what would silently match nothing, and can do nothing but compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.row_filter import kept_rows
from mil_jax.errors import DataError

TABLE = pd.DataFrame(
    {
        "slide_id": ["a", "b", "c", "d"],
        "age": ["61", "40", np.nan, "60.5"],
        "stage": ["I", "II", "III", np.nan],
        "bad": ["True", "False", "False", np.nan],
        "code": ["07", "12", "07", "12"],
        "grade": ["3+4", "3", "4", "3"],
        "died at": ["5", "70", "61", "1"],
        "class": ["A", "B", "A", "B"],
        "seen": ["yes", "[Not Available]", "true", "--"],
        "frozen": ["True", "[Not Available]", "false", "Unknown"],
        "nothing": [np.nan] * 4,
    }
)


def kept(expression: str) -> str:
    """The slides that are kept."""
    rows = kept_rows(TABLE, expression, "t.csv", list(TABLE))
    assert rows.dtype == bool
    return "".join(TABLE["slide_id"][rows])


@pytest.mark.parametrize(
    ("expression", "slides"),
    [
        ("age > 60", "ad"),
        ("60 < age", "ad"),
        ("40 <= age < 61", "bd"),
        ("age != 40", "acd"),
        ("age > -1", "abd"),
        ("not age > 60", "bc"),
        ("age > 60 and stage in ['I', 'II']", "a"),
        ("age > 60 or stage == 'III'", "acd"),
        ("(age > 60) | (stage == 'III')", "acd"),
        ("(age > 60) & ~(stage == 'I')", "d"),
        ("stage not in ['I']", "bcd"),
        ("stage != 'I'", "bcd"),
        ("bad", "a"),
        ("not bad", "bcd"),
        ("bad != True", "bcd"),
        ("bad == False", "bc"),
        ("bad == 'false'", "bc"),
        ("code == '07'", "ac"),
        ("grade != '3'", "ac"),
        ("isnull(age)", "c"),
        ("age.isna() or stage.isnull()", "cd"),
        ("notnull(age) and age.notna()", "abd"),
        ("`died at` > age", "b"),
        ("  age > 60  ", "ad"),
        ("`class` == 'A'", "ac"),
        ("frozen", "a"),
        ("frozen == False", "c"),
        ("isnull(frozen)", "bd"),
        ("isnull(nothing)", "abcd"),
    ],
)
def test_a_filter_keeps_the_rows_that_it_says(expression, slides):
    assert kept(expression) == slides


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("code == 7", "code is a column of texts .such as 07., which 7 never equals: write a text in quotes"),
        ("code != 7", "never equals"),
        ("grade > 3", "never equals"),
        ("age == '61'", "age is a column of numbers .* write a number"),
        ("bad == 1", "write True or False"),
        ("age in ['61']", "never equals"),
        ("age == stage", "which never compare"),
        ("age", "age is not true or false in each row"),
        ("agee > 60", "did you mean 'age'"),
        ("1 < 2", "both no columns"),
        ("age is 60", "columns are compared by"),
        ("age > 60 and", "write a comparison"),
        ("", "write a comparison"),
        ("class == 'A'", "write `class` in backticks"),
        ("died at > 5", "write `died at` in backticks"),
        ("nothing > 3", "all cells of nothing are empty"),
        ("seen == True", "never equals"),
        ("age > 6_0 ** 9", "neither a column nor a number"),
    ],
)
def test_what_would_match_nothing_or_is_no_comparison_is_refused(expression, sentence):
    with pytest.raises(DataError, match=sentence):
        kept(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "slide_id.to_csv('MARK')",
        "slide_id.to_pickle('MARK')",
        "age.values.tofile('MARK')",
        "slide_id.to_csv.__globals__['os'].system('touch MARK')",
        "age.__init__.__globals__['sys'].modules['os'].system('touch MARK')",
        "age.pipe(age.__init__.__globals__)",
        "@pd.io.common.os.system('touch MARK')",
        "__import__('os').system('touch MARK') == 0",
        "(lambda: 1)()",
        "[x for x in age]",
        "isnull(age, open('MARK', 'w'))",
        "age == f'{age}'",
        "age > 9**9**9",
        "age := 3",
        "not " * 1_200 + "bad",
        "(" * 2_000 + "bad" + ")" * 2_000,
        "bad or " * 2_000 + "bad",
    ],
    ids=range(17),
)
def test_a_filter_calls_nothing_and_computes_nothing(expression, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.filter"):
        kept(expression)
    assert list(Path().iterdir()) == []


def test_a_word_for_missing_leaves_a_column_of_numbers_one():
    table = pd.DataFrame({"age": ["61", "[Not Available]", "'--", "50", np.nan]}, dtype=object)
    assert kept_rows(table, "age > 60", "t.csv", list(table)).tolist() == [True, False, False, False, False]
    assert kept_rows(table, "isnull(age)", "t.csv", list(table)).tolist() == [False, True, True, False, True]
    words = pd.DataFrame({"stage": ["I", "Unknown"]}, dtype=object)
    assert kept_rows(words, "stage != 'Unknown'", "t.csv", list(words)).tolist() == [True, False]
