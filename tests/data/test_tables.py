"""Reading label tables: text cells, named columns only, every format."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd
import pytest

from mil_jax.data import tables
from mil_jax.data.row_filter import kept_rows
from mil_jax.data.tables import mentioned_columns, read_columns, read_header
from mil_jax.errors import DataError
from tests.skips import needs


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_ids_keep_leading_zeros_and_labels_stay_text(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "slide_id,label\n007,1e5\n"), ["slide_id", "label"])
    assert table.to_numpy().tolist() == [["007", "1e5"]]


def test_only_named_columns_are_kept_in_the_order_asked(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "a,b,c\n1,2,3\n"), ["c", "a"])
    assert list(table.columns) == ["c", "a"]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "t.csv", "path,label\nx,1\n", encoding="utf-8-sig")
    assert read_header(path) == ["path", "label"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_is_recognised_whatever_the_suffix(tmp_path, delimiter):
    path = write(tmp_path / "t.csv", f"slide_id{delimiter}label\nx{delimiter}A\n")
    assert read_columns(path, ["label"])["label"].tolist() == ["A"]


def test_missing_values_are_nan_but_the_word_none_is_a_class(tmp_path):
    column = read_columns(write(tmp_path / "t.csv", "s,label\na,NA\nb,\nc,None\n"), ["label"])["label"]
    assert column.isna().tolist() == [True, True, False]


def test_rows_carry_their_line_numbers_across_blank_lines(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "s,label\na,1\n\nb,2\n"), ["s"])
    assert table.index.tolist() == [2, 4]


def test_trailing_delimiters_and_short_rows_are_read(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "a,b\n1,2,\n3\n"), ["a", "b"])
    assert table["a"].tolist() == ["1", "3"]
    assert table["b"].isna().tolist() == [False, True]


@pytest.mark.parametrize("suffix", [".xlsx", ".parquet"])
def test_binary_tables_read_as_the_same_text_as_csv(tmp_path, suffix):
    needs("openpyxl")
    needs("pyarrow")
    frame = pd.DataFrame({"slide_id": ["007", "b"], "label": [1.0, np.nan], "age": [60.5, 61.0], "unused": [1, 2]})
    path = tmp_path / f"t{suffix}"
    frame.to_excel(path, index=False) if suffix == ".xlsx" else frame.to_parquet(path)
    table = read_columns(path, ["slide_id", "label", "age"])
    assert table.fillna("missing").to_numpy().tolist() == [["007", "1", "60.5"], ["b", "missing", "61"]]
    assert table.index.tolist() == [2, 3]


def test_filter_compares_numbers_as_numbers_and_ids_as_text():
    table = pd.DataFrame({"age": ["9", "70"], "code": ["007", "008"]}, dtype=object)
    assert kept_rows(table, "age > 60 and code == '008'", "t.csv", ["age", "code"]).tolist() == [False, True]


def test_filter_reads_columns_named_in_backticks():
    assert mentioned_columns("`stain type` == 'HE' and age > 3", ["stain type", "age", "ages"]) == ["stain type", "age"]


def test_filter_keeps_no_row_whose_value_is_missing():
    table = pd.DataFrame({"age": ["70", np.nan]}, dtype=object)
    assert kept_rows(table, "age > 60", "t.csv", ["age"]).tolist() == [True, False]


def test_comment_lines_above_the_header_are_skipped_and_lines_keep_their_numbers(tmp_path):
    path = write(
        tmp_path / "data_clinical_patient.txt", "#Patient\tTime\n#STRING\tNUMBER\nPATIENT_ID\tOS_MONTHS\na\t1\nb\t2\n"
    )
    table = read_columns(path, ["PATIENT_ID", "OS_MONTHS"])
    assert table["OS_MONTHS"].to_dict() == {4: "1", 5: "2"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_excel_writes_is_read(tmp_path, encoding):
    path = write(tmp_path / "t.csv", "sep=;\r\nslide_id;label\r\ns\u00e9;A\r\n", encoding=encoding)
    assert read_header(path) == ["slide_id", "label"]
    assert read_columns(path, ["slide_id"])["slide_id"].to_dict() == {3: "s\u00e9"}


@pytest.mark.parametrize(
    ("above", "delimiter", "line"),
    [
        ("\n\n", ",", 4),
        (",,\n", ",", 3),
        ("SEP=;\n", ";", 3),
        ('"sep=;"\n', ";", 3),
        ("sep=;;;\n", ";", 3),
        ("sep=|\n", "|", 3),
        ("sep=\t\n", "\t", 3),
        ("sep=;\n# exported in May\n\n", ";", 5),
        ("# exported in May\nsep=;\n", ";", 4),
    ],
)
def test_what_may_stand_above_the_header(tmp_path, above, delimiter, line):
    path = write(tmp_path / "t.csv", f"{above}slide_id{delimiter}label\ns{delimiter}A\n")
    assert read_columns(path, ["slide_id", "label"]).loc[line].tolist() == ["s", "A"]


def test_characters_that_nobody_sees_are_no_part_of_names_and_cells(tmp_path):
    path = write(tmp_path / "t.csv", "\ufeff\ufeffslide_id,la\u00adbel\u200b\ns\u200b,\u2060A\n")
    assert read_columns(path, ["slide_id", "label"]).loc[2].tolist() == ["s", "A"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b's,label\na,A\n"b,B\nc,C\n', "below line 2: cannot be read as a table .* close its quotes"),
        (b's,label\na,A\n"b,B\nc,C\n"d,D\n', "below line 2: .* close its quotes"),
        (b's,"label\na,A\n', "at its beginning: .* close its quotes"),
        (b"s,label\na,A\0\n", "holds NUL characters"),
        ("s,label\na,A\n".encode("utf-16-le"), "holds NUL characters, .* UTF-16 without its mark"),
    ],
)
def test_what_would_lose_lines_or_letters_is_refused(tmp_path, content, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_columns(path, ["s"])


def test_a_cell_of_several_lines_is_one(tmp_path):
    path = write(tmp_path / "t.csv", 's,label\n"a\nb",A\nc,"the ""big"" one"\n')
    assert read_columns(path, ["s", "label"]).to_numpy().tolist() == [["a\nb", "A"], ["c", 'the "big" one']]


def test_a_column_in_another_sheet_is_told(tmp_path):
    pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as file:
        pd.DataFrame({"about": ["x"], "whom": ["y"]}).to_excel(file, sheet_name="Read me", index=False)
        pd.DataFrame({"slide_id": ["a"], "label": ["A"]}).to_excel(file, sheet_name="Labels", index=False)
    with pytest.raises(
        DataError, match="its columns are about, whom, in the first of its sheets; save Labels as a file"
    ):
        read_columns(path, ["label"])


def test_bytes_of_a_parquet_file_are_text(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"label": [b"A", b"\xff"]}).to_parquet(tmp_path / "t.parquet")
    assert read_columns(tmp_path / "t.parquet", ["label"])["label"].tolist() == ["A", "\\xff"]


def test_digits_of_other_scripts_make_no_number():
    assert tables.is_number("3")
    assert not tables.is_number("\u0663")


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_a_title_above_the_table_is_refused(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        write(path, "Table 1,,\nslide_id,label,age\na,A,1\n")
    else:
        pytest.importorskip("openpyxl")
        pd.DataFrame([["Table 1", None, None], ["slide_id", "label", "age"], ["a", "A", 1]]).to_excel(
            path, header=False, index=False
        )
    with pytest.raises(DataError, match=r"its first row holds only 'Table 1'.*delete titles above the table"):
        read_header(path)


def test_an_index_that_pandas_saved_is_a_column(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"slide_id": ["a", "b"], "site": ["x", "y"], "label": [0, 1]})
    frame.set_index(["slide_id", "site"]).to_parquet(tmp_path / "t.parquet")
    assert set(read_header(tmp_path / "t.parquet")) == {"slide_id", "site", "label"}
    assert read_columns(tmp_path / "t.parquet", ["slide_id", "label"]).to_numpy().tolist() == [["a", "0"], ["b", "1"]]


def test_a_far_cell_of_a_sheet_is_one_cell(tmp_path):
    """Row 1,048,576, column XFD: 17 thousand million cells lie between."""
    pytest.importorskip("openpyxl")
    plain, far = tmp_path / "plain.xlsx", tmp_path / "far.xlsx"
    pd.DataFrame({"slide_id": ["a", "b"], "label": ["A", "B"]}).to_excel(plain, index=False)
    cell = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(far, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"</sheetData>", cell))
    table = read_columns(far, ["slide_id", "label"])
    assert table.index.tolist() == [2, 3, 1048576]
    assert table["slide_id"].tolist()[:2] == ["a", "b"]


def test_a_sheet_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    pd.DataFrame({"slide_id": ["a"] * 1000}).to_excel(tmp_path / "t.xlsx", index=False)
    monkeypatch.setattr(tables, "MOST_UNPACKED", 10_000)
    with pytest.raises(DataError, match=r"t\.xlsx: its .* bytes unpack to"):
        read_header(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (b'<row r="999999999"><c r="A999999999"><v>1</v></c></row>', "claims more than 1,048,576 rows"),
        (
            b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (row, row) for row in range(4, 100)),
            "spans more than 1,000,000 cells",
        ),
    ],
)
def test_a_sheet_without_an_end_is_refused(tmp_path, monkeypatch, end, said):
    pytest.importorskip("openpyxl")
    plain, endless = tmp_path / "plain.xlsx", tmp_path / "endless.xlsx"
    pd.DataFrame({"slide_id": ["a", "b"], "label": ["A", "B"]}).to_excel(plain, index=False)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(endless, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"</sheetData>", end + b"</sheetData>"))
    monkeypatch.setattr(tables, "MOST_CELLS", 1_000_000)
    with pytest.raises(DataError, match=rf"endless\.xlsx: its sheet Sheet1 {said}"):
        read_header(endless)


def test_a_text_that_repeats_in_a_parquet_file_is_kept_once(tmp_path):
    """Else 20,000 rows of this small file would take 20 GB."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(20_000, np.int32)), ["  " + "x" * 1_000_000])
    table = arrow.table({"slide_id": [str(row) for row in range(20_000)], "label": text})
    parquet.write_table(table, tmp_path / "t.parquet")
    labels = read_columns(tmp_path / "t.parquet", ["slide_id", "label"])["label"]
    assert labels[2] == "x" * 1_000_000
    assert labels[2] is labels[20_001]


def test_parquet_columns_of_lists_and_bombs_are_refused(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(arrow.table({"slide_id": ["a", "b"], "label": [[1], [2, 3]]}), path)
    with pytest.raises(DataError, match=r"'label' holds list.*a cell of a table is one value"):
        read_columns(path, ["slide_id", "label"])
    parquet.write_table(arrow.table({"slide_id": ["a", "x" * 10_000_000]}), path, compression="zstd")
    monkeypatch.setattr(tables, "FREE_UNPACKED", 1_000_000)
    with pytest.raises(DataError, match=r"t\.parquet: its .* bytes unpack to"):
        read_columns(path, ["slide_id"])


def test_the_sheet_that_is_filled_is_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.create_sheet("labels")
    for row in (["slide_id", "label"], ["a", "A"]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    assert read_columns(tmp_path / "t.xlsx", ["label"])["label"].tolist() == ["A"]
    book.create_sheet("more").append(["x"])
    book.save(tmp_path / "u.xlsx")
    with pytest.raises(DataError, match="its first sheet is empty and labels, more are not"):
        read_header(tmp_path / "u.xlsx")
