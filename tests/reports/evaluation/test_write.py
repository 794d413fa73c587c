"""Names of files for cohorts and label columns that people call as they like."""

from __future__ import annotations

from mil_jax.reports.evaluation.write import file_names


def test_every_name_is_that_of_one_file_in_the_folder(tmp_path):
    texts = [
        "Hospital A",
        "Hospital-A",
        "hospital a",
        "../up_ensemble",
        "..",
        "9" * 5000,
        "9" * 5001,
        "\U00020000" * 300,
        "a\nb",
        "A/B",
    ]
    names = file_names(texts)
    for name in names:
        (tmp_path / f"reliability_{name}.png").write_text("")
    written = {path.name.casefold() for path in tmp_path.iterdir()}
    assert len(written) == len(texts)
    assert names[:2] == ["Hospital-A", "Hospital-A-2"]


def test_usual_names_stay():
    assert file_names(["other_ensemble", "other_held-out", "0", "1"]) == ["other_ensemble", "other_held-out", "0", "1"]
