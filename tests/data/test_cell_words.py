"""Cells that mean something else than they say: missing values, decimal commas, alive and dead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.cell_words import as_plain_numbers, flags_of, says_missing, values_of


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[Not Available]",
            "[NOT AVAILABLE]",
            "Not Available",
            "'--",
            "--",
            "-",
            "\u2013",
            ".",
            "?",
            "[Not Applicable]",
            "[Unknown]",
        ),
        *(
            "unknown",
            "None",
            "none",
            "not reported",
            "Not Reported",
            "NAN",
            "Na",
            "NaT",
            "[Discrepancy]",
            "missing",
            "not_available",
        ),
        *(
            "<NA>",
            "(unknown)",
            "Not  reported",
            "n/a",
            "#N/A",
            "*",
            "[]",
            "[Not\u00a0Available]",
            "n.a.",
            "(blank)",
            "#N/A N/A",
            "TBD",
            "1.#QNAN",
        ),
    ],
)
def test_words_of_the_portals_say_that_a_value_is_missing(text):
    assert says_missing(text)


@pytest.mark.parametrize(
    "text",
    ["A", "0", "-1", "no", "negative", "not mutated", "none of these", "Na+", "1.", "[1]", "unknown primary", "X"],
)
def test_other_words_do_not(text):
    assert not says_missing(text)


def test_missing_words_are_counted_and_a_class_of_that_name_stays():
    column = pd.Series(["A", "Unknown", "B", "[Not Available]", "Unknown", np.nan], dtype=object)
    values, said = values_of(column, "subtype")
    assert values.isna().tolist() == [False, True, False, True, True, True]
    (sentence,) = said
    assert "column 'subtype': 3 cells say that the value is missing ('Unknown' 2, '[Not Available]' 1)" in sentence
    values, said = values_of(column, "subtype", ("A", "B", "Unknown"))
    assert values.tolist()[:3] == ["A", "Unknown", "B"]
    assert "1 cells say" in said[0]
    values, said = values_of(column, "subtype", ("A", "B", "unknown"))
    assert values.tolist()[1] == "Unknown"  # which is then refused, as any other class written in another case


@pytest.mark.parametrize(
    ("cells", "read"),
    [
        (["61,5", "7", "-0,25"], ["61.5", "7", "-0.25"]),
        (["1,234", "5,678"], None),  # may be thousands
        (["61,5", "7.5"], None),
        (["a,b", "c,d"], None),
    ],
)
def test_decimal_commas_are_read_where_they_can_be_nothing_else(cells, read):
    values, said = values_of(pd.Series(cells, dtype=object), "age")
    assert values.tolist() == (read or cells)
    assert bool(said) == (read is not None)


def test_words_for_an_event():
    column = pd.Series(["1:DECEASED", "0:LIVING", "Dead", "alive", "yes", "0", np.nan, "perhaps"], dtype=object)
    values, said = flags_of(column, "OS_STATUS")
    assert values.tolist()[:6] == ["1", "0", "1", "0", "1", "0"]
    assert values.tolist()[7] == "perhaps"
    assert "'1:DECEASED' is read as 1" in said[0]
    values, _ = flags_of(column, "censored", events=False)  # whoever is dead is not censored: not guessed
    assert values.tolist()[:5] == ["1:DECEASED", "0:LIVING", "Dead", "alive", "1"]


@pytest.mark.parametrize(
    ("text", "event", "censored"),
    [
        ("1:LIVING", "1:LIVING", "1"),
        ("0:DECEASED", "0:DECEASED", "0"),
        ("1:DEAD WITH TUMOR", "1", "1:DEAD WITH TUMOR"),
        ("0:ALIVE OR DEAD TUMOR FREE", "0", "0:ALIVE OR DEAD TUMOR FREE"),
        ("1:Recurred/Progressed", "1", "1:Recurred/Progressed"),
        ("0:CENSORED", "0", "0:CENSORED"),
        ("1:censored", "1:censored", "1"),
        ("1:positive", "1", "1"),
    ],
)
def test_a_number_that_its_word_contradicts_is_not_read(text, event, censored):
    column = pd.Series([text], dtype=object)
    assert flags_of(column, "x")[0].tolist() == [event]
    assert flags_of(column, "x", events=False)[0].tolist() == [censored]


@pytest.mark.parametrize(
    ("name", "events", "doubtful"),
    [
        ("censorship", True, True),
        ("Censored", True, True),
        ("uncensored", True, False),
        ("not_censored", True, False),
        ("OS_STATUS", True, False),
        ("censorship", False, False),
        ("censor_status", False, False),
        ("vital_status", False, True),
        ("c", False, False),
    ],
)
def test_a_column_named_as_the_opposite_is_pointed_out(name, events, doubtful):
    _, said = flags_of(pd.Series(["0", "1"], dtype=object), name, events)
    assert [f"column {name!r} is taken for" in sentence for sentence in said] == [True] * doubtful


def test_a_column_that_is_mostly_numbers_is_one_of_numbers():
    assert as_plain_numbers(pd.Series(["61", "042", np.nan, "7.5"], dtype=object)).tolist()[:2] == ["61", "42"]
    assert as_plain_numbers(pd.Series(["61"] * 9 + [">89"], dtype=object)).tolist()[-1] == ">89"
    assert as_plain_numbers(pd.Series(["I", "II", "3"], dtype=object)) is None
    assert as_plain_numbers(pd.Series([np.nan], dtype=object)) is None
