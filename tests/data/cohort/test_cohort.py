"""Joining slides and labels: ids, patients, units, duplicates, classes, and what is counted as lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.data.cohort.cohort import CohortSettings, build_cohort, resolve_classes
from mil_jax.data.cohort.ids import base_name, match_ids, natural_key, strip_extension, tcga_patient, tcga_site

CLAM = "case_id,slide_id,label\np1,s1,A\np1,s2,A\np2,s3,B\n"
UUID = "F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291"


@pytest.fixture
def cohort_of(tmp_path):
    """Builds a cohort from the text of a label table and slide names; every slide has 5 tiles unless told."""

    def build(text, slides, sizes=None, suffix=".csv", modified=None, **options):
        path = tmp_path / f"labels{suffix}"
        path.write_text(text, encoding="utf-8")
        sizes = np.full(len(slides), 5) if sizes is None else np.asarray(sizes)
        return build_cohort(slides, sizes, CohortSettings(path, **options), modified=modified)

    return build


def reasons(cohort):
    return dict(zip(cohort.excluded["slide"], cohort.excluded["reason"], strict=True))


def test_clam_table_is_recognised_and_said(cohort_of):
    cohort = cohort_of(CLAM, ["s1", "s2", "s3"])
    assert cohort.bags["patient_id"].tolist() == ["p1", "p1", "p2"]
    assert cohort.labels["label"].tolist() == ["A", "A", "B"]
    assert any("'case_id'" in line for line in cohort.report)


def test_patho_bench_table_is_recognised(cohort_of):
    cohort = cohort_of("case_id\tslide_id\tTP53\tfold_0\np1\ts1\t0\ttrain\np2\ts2\t1\ttest\n", ["s1", "s2"], suffix=".tsv",
                       target="TP53")  # fmt: skip
    assert cohort.labels["TP53"].tolist() == ["0", "1"]


def test_stamp_tables_are_joined_by_patient(cohort_of, tmp_path):
    slides = tmp_path / "slides.csv"
    slides.write_text("PATIENT,FILENAME\np1,a/s1.h5\np1,s2.h5\np2,s3.h5\np9,s9.h5\n")
    cohort = cohort_of(
        "PATIENT,grade\np1,1\np2,2\np3,1\n",
        ["a/s1", "s2", "s3", "s9"],
        target="grade",
        slides_table=slides,
        unit="patient",
    )
    assert cohort.bags["bag_id"].tolist() == ["p1", "p2"]
    assert cohort.slide_ids[0] == ("a/s1", "s2")
    assert "no row in labels.csv" in reasons(cohort)["s9"]
    assert "without a slide" in reasons(cohort)["p3"]


def test_other_column_names_are_given_explicitly(cohort_of):
    cohort = cohort_of("image,subject,grade\n01,x,low\n", ["01"], id_column="image", patient="subject", target="grade")
    assert cohort.bags["patient_id"].tolist() == ["x"]


def test_pathgene_paths_match_by_file_name(cohort_of):
    table = "path,label\nK:\\x\\pt_files\\SYN-0000-1.pt,0\n./b/SYN-0001-1.pt,1\n"
    cohort = cohort_of(table, ["SYN-0000-1", "SYN-0001-1"], patient="regex:^(SYN-[0-9]{4})")
    assert cohort.bags["patient_id"].tolist() == ["SYN-0000", "SYN-0001"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"TCGA-3C-AALI-01Z-00-DX1.{UUID}", f"TCGA-3C-AALI-01Z-00-DX1.{UUID}"),
        (f"TCGA-3C-AALI-01Z-00-DX1.{UUID}.svs.h5", f"TCGA-3C-AALI-01Z-00-DX1.{UUID}"),
        ("case 1.2.SVS", "case 1.2"),
        ("a\\b.pt", "a/b"),
        (".h5", ".h5"),
    ],
)
def test_only_known_extensions_are_cut_off(name, expected):
    assert strip_extension(name) == expected


@given(st.text(st.characters(codec="ascii", exclude_characters="/\\\n"), min_size=1).map(str.strip).filter(bool))
def test_base_name_is_stable(name):
    assert base_name(base_name(name)) == base_name(name)


def test_natural_order_sorts_numbers_by_value():
    assert sorted(["bag_10", "bag_2", "bag_02"], key=natural_key) == ["bag_02", "bag_2", "bag_10"]


def test_tcga_barcodes_give_patient_and_site():
    assert tcga_patient("x/TCGA-3C-AALI-01Z-00-DX1.svs") == "TCGA-3C-AALI"
    assert tcga_site("TCGA-NA-A4QV-01") == "NA"
    assert tcga_patient("TCGA-3C-AALIX") is None


@pytest.mark.parametrize(
    ("name", "slide"),
    [
        ("TCGA-3C-AALI-01Z-00-DX1", f"TCGA-3C-AALI-01Z-00-DX1.{UUID}"),
        ("TCGA-3C-AALI", f"TCGA-3C-AALI-01Z-00-DX1.{UUID}"),
        ("TCGA-3C-AALI-01", f"TCGA-3C-AALI-01Z-00-DX1.{UUID}"),
        (f"TCGA-3C-AALI-01Z-00-DX1.{UUID}.svs", "TCGA-3C-AALI-01Z-00-DX1"),
    ],
)
def test_unique_barcode_prefix_matches_and_is_reported(name, slide):
    matches = match_ids([name], ["TCGA-3C-AALJ-01Z-00-DX1", slide])
    assert matches.slides == [[1]]
    assert matches.by_barcode == [name]


def test_barcode_prefix_ends_at_a_field():
    assert match_ids(["TCGA-3C-AALI-01Z-00-DX1"], ["TCGA-3C-AALI-01Z-00-DX10.x"]).slides == [[]]


def test_exactly_named_slide_is_not_offered_to_prefixes():
    names = ["TCGA-3C-AALI-01Z-00-DX1", "TCGA-3C-AALI"]
    assert match_ids(names, [*names[:1], "TCGA-3C-AALI-01Z-00-DX2"]).slides == [[0], [1]]


def test_prefixes_are_for_barcodes_only():
    assert match_ids(["case-1"], ["case-1-a"]).slides == [[]]


def test_every_loss_is_counted_with_its_reason(cohort_of):
    table = CLAM + "p3,s4,B\np4,s5,\np5,s6,A\np6,s7,A\n"
    cohort = cohort_of(
        table, ["s1", "s2", "s3", "s4", "s5", "s7", "extra"], [5, 5, 5, 0, 5, 5, 5], filter="case_id != 'p6'"
    )
    assert reasons(cohort) == {
        "s6": "labelled in labels.csv, but without features",
        "s4": "empty slide: it has no tiles",
        "s5": "no label in its row of labels.csv",
        "s7": "left out by data.filter",
        "extra": "no row in labels.csv",
    }
    assert sum(line.startswith("excluded 1:") for line in cohort.report) == 5


def test_filter_may_use_any_column_of_the_table(cohort_of):
    table = "case_id,slide_id,label,age\np1,s1,A,40\np2,s2,B,70\n"
    assert cohort_of(table, ["s1", "s2"], filter="age > 50").bags["bag_id"].tolist() == ["s2"]


def test_strict_accepts_what_the_filter_leaves_out(cohort_of):
    assert len(cohort_of(CLAM, ["s1", "s2", "s3"], filter="label == 'A'", strict=True).bags) == 2


def test_patient_bags_hold_all_slides_in_order(cohort_of):
    cohort = cohort_of(CLAM, ["s3", "s2", "s1"], [1, 2, 4], unit="patient")
    assert cohort.bags[["bag_id", "num_slides", "num_instances"]].to_numpy().tolist() == [["p1", 2, 6], ["p2", 1, 1]]
    assert [rows.tolist() for rows in cohort.slides] == [[2, 1], [0]]


def test_patient_keeps_its_other_slides_when_one_is_empty(cohort_of):
    cohort = cohort_of(CLAM, ["s1", "s2", "s3"], [0, 2, 4], unit="patient")
    assert cohort.slide_ids == [("s2",), ("s3",)]


def test_patient_table_gives_patient_bags_by_rule(cohort_of):
    cohort = cohort_of("case_id,label\n1,A\n2,B\n", ["s1_a", "s1_b", "s2_a"], patient="regex:s([0-9])", unit="patient")
    assert cohort.slide_ids == [("s1_a", "s1_b"), ("s2_a",)]


@pytest.mark.parametrize(("duplicates", "expected"), [("all", ["DX1", "DX2"]), ("newest", ["DX1"])])
def test_slides_of_one_row_follow_the_duplicates_setting(cohort_of, duplicates, expected):
    slides = ["TCGA-3C-AALI-01Z-00-DX1", "TCGA-3C-AALI-01Z-00-DX2"]
    cohort = cohort_of("case_id,label\nTCGA-3C-AALI,A\n", slides, duplicates=duplicates, modified=np.array([9, 3]))
    assert [name[-3:] for name in cohort.bags["bag_id"]] == expected
    assert cohort.labels["label"].tolist() == ["A"] * len(expected)


def test_equal_rows_of_a_slide_are_merged_and_reported(cohort_of):
    cohort = cohort_of(CLAM + "p1,s1,A\n", ["s1", "s2", "s3"])
    assert len(cohort.bags) == 3
    assert any("1 repeated rows" in line for line in cohort.report)


def test_patient_none_makes_each_slide_its_own(cohort_of):
    cohort = cohort_of("slide_id,label\na,0\nb,1\n", ["a", "b"], patient="none")
    assert cohort.bags["patient_id"].tolist() == ["a", "b"]


def test_tcga_patients_are_said_aloud(cohort_of):
    cohort = cohort_of("slide_id,label\nTCGA-3C-AALI-01Z-00-DX1,0\n", ["TCGA-3C-AALI-01Z-00-DX1"], patient="tcga")
    assert any("TCGA barcodes" in line for line in cohort.report)


def test_site_comes_from_a_column_or_from_barcodes(cohort_of):
    table = "case_id,slide_id,label,site\np1,TCGA-3C-AALI-01,0,Oslo\n"
    slides = ["TCGA-3C-AALI-01"]
    assert cohort_of(table, slides, site="site").bags["site"].tolist() == ["Oslo"]
    assert cohort_of(table, slides).bags["site"].tolist() == ["3C"]


def test_further_columns_are_kept_for_the_splits(cohort_of):
    table = "case_id,slide_id,label,official\np1,s1,A,test\np2,s2,B,\n"
    assert cohort_of(table, ["s1", "s2"], columns=["official"]).bags["official"].fillna("").tolist() == ["test", ""]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(6)))
def test_cohort_depends_on_the_order_of_neither_table_nor_shards(tmp_path_factory, row_order, slide_order):
    path = tmp_path_factory.mktemp("order") / "labels.csv"
    rows = [f"p{k // 2},s{k},{k // 2 % 2}" for k in range(6)]
    path.write_text("case_id,slide_id,label\n" + "\n".join(rows[k] for k in row_order))
    cohort = build_cohort([f"s{k}" for k in slide_order], np.array(slide_order) + 1, CohortSettings(path))
    assert cohort.bags["bag_id"].tolist() == [f"s{k}" for k in range(6)]
    assert cohort.bags["num_instances"].tolist() == [1, 2, 3, 4, 5, 6]
    assert [slide_order[rows[0]] for rows in cohort.slides] == list(range(6))


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["b", "a"], {}, ("a", "b")),
        (["10", "9", "2"], {}, ("2", "9", "10")),
        (["0.0", "1.0"], {}, ("0", "1")),
        (["a", "b", "c"], {"classes": ["c", "a", "b"]}, ("c", "a", "b")),
        (["LUAD", "LUSC"], {"positive": "LUAD"}, ("LUSC", "LUAD")),
        (["0", "1"], {"classes": [1, 0], "positive": 1}, ("0", "1")),
    ],
)
def test_class_order(cohort_of, tmp_path, values, options, expected):
    table = "case_id,slide_id,label\n" + "".join(f"p{k},s{k},{value}\n" for k, value in enumerate(values))
    cohort = cohort_of(table, [f"s{k}" for k in range(len(values))], **options)
    assert resolve_classes(cohort.labels, CohortSettings(tmp_path / "labels.csv", **options)) == expected


def test_several_target_columns_are_classes_and_may_have_gaps(cohort_of, tmp_path):
    cohort = cohort_of("case_id,slide_id,TP53,RAS\np1,s1,1,0\np2,s2,,1\n", ["s1", "s2"], target=["TP53", "RAS"])
    assert cohort.labels.isna().to_numpy().tolist() == [[False, False], [True, False]]
    settings = CohortSettings(tmp_path / "t", target=["TP53", "RAS"], multi_label=True)
    assert resolve_classes(cohort.labels, settings) == ("TP53", "RAS")


def test_hundred_thousand_slides_join_within_seconds(cohort_of):
    import time

    table = "case_id,slide_id,label\n" + "".join(f"p{k // 2},s{k},{k // 2 % 3}\n" for k in range(100_000))
    start = time.perf_counter()
    cohort = cohort_of(table, [f"s{k}" for k in range(100_000)], unit="patient")
    assert len(cohort.bags) == 50_000
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("name", "options", "classes", "slides", "patients"),
    [
        ("lung", {}, {"LUAD": 492, "LUSC": 466}, 958, 862),
        ("kidney", {}, {"CCRCC": 498, "PRCC": 289, "CHRCC": 118}, 905, 866),
        ("brca", {"filter": "oncotree_code in ['IDC', 'ILC']"}, {"IDC": 726, "ILC": 149}, 875, None),
    ],
)
def test_real_tcga_tables_load_with_their_published_counts(shared, name, options, classes, slides, patients):
    path = shared / f"data/cohorts/hipt/tcga_{name}_subset.csv"
    names = pd.read_csv(path, dtype=str)["slide_id"].tolist()
    cohort = build_cohort(names, np.ones(len(names), int), CohortSettings(path, "oncotree_code", **options))
    assert cohort.labels["oncotree_code"].value_counts().to_dict() == classes
    assert len(cohort.bags) == slides
    assert patients in (None, cohort.bags["patient_id"].nunique())


@pytest.mark.parametrize(("name", "slides", "patients"), [("ucec", 539, 480), ("luad", 516, 453)])
def test_real_survival_tables_give_patient_bags(shared, name, slides, patients):
    path = shared / f"data/cohorts/patchgcn/tcga_{name}_survival.csv"
    names = pd.read_csv(path, dtype=str)["slide_id"].tolist()
    options = CohortSettings(path, ["survival_months", "censorship"], unit="patient")
    cohort = build_cohort(names, np.ones(len(names), int), options)
    assert (len(cohort.bags), int(cohort.bags["num_slides"].sum())) == (patients, slides)


def test_synthetic_pathgene_table_loads_with_its_counts(shared):
    path = shared / "data/cohorts/pathgene_synthetic/SYN_TP53_3.csv"
    names = [base_name(name) for name in pd.read_csv(path)["path"]]
    cohort = build_cohort(names, np.ones(len(names), int), CohortSettings(path, patient="regex:^SYN-[0-9]{4}"))
    assert cohort.labels["label"].value_counts().to_dict() == {"0": 856, "1": 232, "2": 462}
