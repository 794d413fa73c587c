"""Published splits: every known form is read, run as it is, and its leaks are counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.cohort.cohort import CohortSettings, build_cohort
from mil_jax.data.cohort.ids import base_name
from mil_jax.data.splits.splits import TEST, TRAIN, UNUSED, VALIDATION, SplitSettings, make_splits
from mil_jax.errors import DataError
from tests.data.splits.test_splits import cohort_of


def published(path, **options):
    return SplitSettings("file", file=path, **{"val_fraction": 0, **options})


def test_clam_folder_is_read(tmp_path):
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,s0,s2,s3\n1,s1,,\n")
    (tmp_path / "splits_10.csv").write_text(",train,val,test\n0,s3,s2,s0\n1,s1,,\n")
    (tmp_path / "splits_2.csv").write_text(",train,val,test\n0,s2,s3,s0\n1,s1,,\n")
    (tmp_path / "splits_0_descriptor.csv").write_text(",train\nA,2\n")
    splits = make_splits(cohort_of(range(4)), None, published(tmp_path))
    assert splits.names == ["0", "2", "10"]
    assert splits.parts[0].tolist() == [TRAIN, TRAIN, VALIDATION, TEST]


def test_clam_bool_files_are_read(tmp_path):
    (tmp_path / "splits_0_bool.csv").write_text(
        ",train,val,test\ns0,True,False,False\ns1,False,True,False\ns2,False,False,True\n"
    )
    splits = make_splits(cohort_of(range(3)), None, published(tmp_path))
    assert splits.parts.tolist() == [[TRAIN, VALIDATION, TEST]]


def test_patho_bench_table_gets_validation_from_training_patients(tmp_path):
    rows = [
        f"p{k // 2}\ts{k}\t{k % 2}\t{'test' if k < 8 else 'train'}\t{'train' if k < 32 else 'test'}" for k in range(40)
    ]
    (tmp_path / "k=all.tsv").write_text("case_id\tslide_id\tlabel\tfold_0\tfold_1\n" + "\n".join(rows))
    patients = [f"p{k // 2}" for k in range(40)]
    splits = make_splits(cohort_of(patients), np.arange(40) % 2, published(tmp_path / "k=all.tsv", val_fraction=0.25))
    assert (splits.parts == TEST).sum(axis=1).tolist() == [8, 8]
    assert (splits.parts == VALIDATION).sum(axis=1).tolist() == [8, 8]
    assert len(splits.leaks) == 0
    assert "carved" in " ".join(splits.report)


def test_pathgene_fold_column_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,Fold\nx/s0.pt,0,0\nx/s1.pt,1,1\nx/s2.pt,0,2\n", encoding="utf-8-sig")
    splits = make_splits(cohort_of(range(3)), None, published(tmp_path / "t.csv"))
    assert ((splits.parts == TEST) == np.eye(3, dtype=bool)).all()


def test_patient_ids_in_a_split_file_mean_all_of_their_bags(tmp_path):
    (tmp_path / "t.csv").write_text("case_id,fold_0\na,train\nb,test\n")
    splits = make_splits(cohort_of(["a", "a", "b"]), None, published(tmp_path / "t.csv"))
    assert splits.parts.tolist() == [[TRAIN, TRAIN, TEST]]


def test_file_without_test_parts_tests_on_its_validation_parts(tmp_path):
    (tmp_path / "t.csv").write_text("case_id,fold0\na,train\nb,val\n")
    splits = make_splits(cohort_of(["a", "b"]), None, published(tmp_path / "t.csv"))
    assert splits.parts.tolist() == [[TRAIN, TEST]]
    assert "no test parts" in " ".join(splits.report)


def test_numbers_that_pandas_wrote_with_gaps_are_ids(tmp_path):
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,10,12.0,13.0\n1,11,,\n")
    cohort = dataclasses.replace(cohort_of(range(4)), slide_ids=[("10",), ("11",), ("12",), ("13",)])
    splits = make_splits(cohort, None, published(tmp_path))
    assert splits.parts.tolist() == [[TRAIN, TRAIN, VALIDATION, TEST]]


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_whose_ids_match_nothing_is_refused(tmp_path, part):
    """Whether the file has it is a matter of the file: validation never becomes test because features are missing."""
    columns = {"train": ["s0", "s1", "s2", "s3"], "val": ["s4"], "test": ["s5"]} | {part: ["elsewhere"]}
    rows = [",".join(row) for row in zip(*(names + [""] * (4 - len(names)) for names in columns.values()))]
    (tmp_path / "splits_0.csv").write_text("\n".join([",".join(columns), *rows]))
    full = "validation" if part == "val" else part
    with pytest.raises(DataError, match=f"only 0 of 1 ids of the {full} part of fold 0 are in the cohort.*elsewhere"):
        make_splits(cohort_of(range(6)), None, published(tmp_path, min_matched=0.1))


def test_a_fold_without_test_bags_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("slide_id,fold_0,fold_1\ns0,train,train\ns1,val,val\ns2,test,train\n")
    with pytest.raises(DataError, match="fold 1 has no test bag"):
        make_splits(cohort_of(range(3)), None, published(tmp_path / "t.csv"))


def test_ids_without_bag_and_bags_without_part_are_counted(tmp_path):
    (tmp_path / "t.csv").write_text("slide_id,fold_0\ns0,train\ns1,test\ngone,train\n")
    splits = make_splits(cohort_of(range(3)), None, published(tmp_path / "t.csv"))
    assert splits.parts.tolist() == [[TRAIN, TEST, UNUSED]]
    assert splits.excluded["slide"].tolist() == ["gone", "s2"]


def test_leaks_are_counted_and_the_leak_free_part_is_marked(tmp_path):
    (tmp_path / "t.csv").write_text("slide_id,fold_0\ns0,train\ns1,test\ns2,test\ns3,test\ns4,val\n")
    splits = make_splits(cohort_of(["a", "a", "a", "b", "c"]), None, published(tmp_path / "t.csv"))
    assert splits.leaks[["part", "other", "patients", "bags"]].to_numpy().tolist() == [["test", "train", 1, 2]]
    assert splits.leak_free.tolist() == [[False, False, False, True, False]]
    assert "fold 0, 1 patients (2 bags)" in " ".join(splits.report)


@pytest.mark.parametrize("name", ["lung", "brca", "kidney"])
def test_published_hipt_splits_run_with_their_leaks_counted(shared, name):
    folder = shared / "data/cohorts/hipt"
    table = pd.read_csv(folder / f"tcga_{name}_subset.csv", dtype=str)
    options = {"filter": "oncotree_code in ['IDC', 'ILC']"} if name == "brca" else {}
    cohort = build_cohort(
        table["slide_id"].tolist(),
        np.ones(len(table), int),
        CohortSettings(folder / f"tcga_{name}_subset.csv", "oncotree_code", **options),
    )
    splits = make_splits(cohort, None, published(folder / f"tcga_{name}_splits.csv"))
    rows = pd.read_csv(folder / f"tcga_{name}_splits.csv", dtype=str).merge(table[["slide_id", "case_id"]])
    rows = rows[rows["slide_id"].isin(cohort.bags["bag_id"])]
    for other, short in (("train", "train"), ("validation", "val")):
        found = splits.leaks[(splits.leaks["part"] == "test") & (splits.leaks["other"] == other)].set_index("fold")[
            "patients"
        ]
        expected = {
            str(k): len(
                set(rows["case_id"][rows[f"fold{k}"] == "test"]) & set(rows["case_id"][rows[f"fold{k}"] == short])
            )
            for k in range(10)
        }
        assert found.to_dict() == {fold: count for fold, count in expected.items() if count}
    assert not splits.leak_free[0][
        np.isin(cohort.bags["patient_id"], cohort.bags["patient_id"][splits.parts[0] == TRAIN])
    ].any()


@pytest.mark.parametrize(
    ("name", "with_test", "with_validation"),
    [
        ("lung", [7, 12, 8, 10, 4, 6, 7, 8, 9, 12], [8, 8, 12, 9, 12, 11, 5, 12, 6, 8]),
        ("brca", [12, 8, 10, 8, 8, 4, 15, 9, 13, 4], [10, 14, 7, 9, 12, 13, 7, 7, 12, 7]),
        ("kidney", [4, 4, 3, 6, 3, 6, 6, 4, 2, 3], [6, 8, 7, 2, 3, 2, 3, 4, 3, 3]),
    ],
)
def test_patients_shared_in_the_whole_hipt_splits_by_barcode(shared, tmp_path, name, with_test, with_validation):
    path = shared / f"data/cohorts/hipt/tcga_{name}_splits.csv"
    slides = pd.read_csv(path, dtype=str)["slide_id"].tolist()
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\n" + "".join(f"{slide},{k % 2}\n" for k, slide in enumerate(slides)))
    cohort = build_cohort(slides, np.ones(len(slides), int), CohortSettings(labels, patient="tcga"))
    leaks = make_splits(cohort, None, published(path)).leaks
    with_training = leaks[leaks["other"] == "train"]
    assert with_training["patients"][with_training["part"] == "test"].tolist() == with_test
    assert with_training["patients"][with_training["part"] == "validation"].tolist() == with_validation


@pytest.mark.parametrize(("name", "sizes"), [("ucec", [96] * 5), ("luad", [91, 91, 91, 90, 90])])
def test_published_patch_gcn_folds_have_their_sizes(shared, name, sizes):
    folder = shared / "data/cohorts/patchgcn"
    path = folder / f"tcga_{name}_survival.csv"
    slides = pd.read_csv(path, dtype=str)["slide_id"].tolist()
    cohort = build_cohort(slides, np.ones(len(slides), int), CohortSettings(path, "censorship", unit="patient"))
    splits = make_splits(cohort, None, published(folder / f"tcga_{name}_splits.csv"))
    assert (splits.parts == TEST).sum(axis=1).tolist() == sizes
    assert len(splits.leaks) == 0


@pytest.mark.parametrize("name", ["EGFR_2", "LUAD_KRAS_2", "LUAD_TP53_2", "TMB_2", "TP53_3", "TP53_exon_5"])
def test_synthetic_pathgene_folds_keep_patients_whole(shared, name):
    path = shared / f"data/cohorts/pathgene_synthetic/SYN_{name}.csv"
    slides = [base_name(row) for row in pd.read_csv(path)["path"]]
    cohort = build_cohort(slides, np.ones(len(slides), int), CohortSettings(path, patient="regex:^SYN-[0-9]{4}"))
    labels = cohort.labels["label"].astype(int).to_numpy()
    splits = make_splits(cohort, labels, published(path, val_fraction=0.15))
    assert splits.names == ["0", "1", "2", "3", "4"]
    assert len(splits.leaks) == 0
    assert (splits.parts == VALIDATION).any(axis=1).all()
