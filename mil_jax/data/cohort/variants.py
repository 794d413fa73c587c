"""Names that may mean one thing: patients and classes that differ in how they are written, and slides of other kinds of tissue.

What is found is said before training and in the summary; nothing is joined by it but a cohort with the patients that a run has met.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from mil_jax.data.cohort.ids import base_name, tcga_patient
from mil_jax.data.tables import is_number, listed

_SAMPLE = re.compile(r"TCGA-\w{2}-\w{4}-(\d{2})[A-Z]?(?:-\d{2}[A-Z]?)?(?:-([A-Z]{2})[A-Z0-9]*)?", re.IGNORECASE)
_SEPARATORS = re.compile(r"[-_\s\u2010-\u2015]+")
_FROZEN = ("TS", "BS", "MS")
_TRUTH = {"true": "1", "yes": "1", "false": "0", "no": "0"}


def patient_key(name: str) -> str:
    """The same text for ids of one person: `P01`, `p01`, `P-1` and `P_01`, `7`, `7.0` and `007`, a barcode and its longer forms."""
    barcode = tcga_patient(name)
    if barcode:
        return barcode
    text = _SEPARATORS.sub("-", _plain(name))
    return _number(_without_zeros(re.sub(r"(?<=[^\W\d_])-(?=\d)", "", text)))


def class_key(name: str) -> str:
    """The same text for names of one class: case, blanks, hyphens, `1` and `1.0`, `1` and `true`."""
    text = _SEPARATORS.sub(" ", _plain(name)).strip() or _plain(name)
    number = _without_zeros(_plain(name))
    return _TRUTH.get(text, _number(number) if is_number(number) else text)


def same_patients(patients: Iterable[str]) -> list[str]:
    """A sentence where two ids may be one person's."""
    groups = _groups(set(patients), patient_key)
    if not groups:
        return []
    shown = listed((" and ".join(map(repr, names)) for names in groups), 3)
    return [
        f"Warning: {len(groups)} patients are written in two ways or more ({shown}); if each is one person, training and test parts may "
        "share them: write their ids alike"
    ]


def same_classes(column: str, labels: Sequence[str], what: str = "classes") -> list[str]:
    """A sentence where two classes (or `what` else) may be one. labels: of all rows."""
    counts = Counter(labels)
    groups = _groups(set(labels), class_key)
    if not groups:
        return []
    shown = listed((" and ".join(f"{name!r} ({counts[name]})" for name in names) for names in groups), 3)
    return [
        f"Warning: {what} of column {column!r} differ only in how they are written: {shown}; they are trained as {what} of their own: "
        "write them alike"
    ]


def tissue_kinds(slides: Iterable[str]) -> list[str]:
    """A sentence where barcodes tell that slides of normal tissue, or frozen sections, lie among others."""
    found: Counter[tuple[str, str]] = Counter()
    for slide in slides:
        match = _SAMPLE.match(base_name(slide))
        if match:
            tissue = "normal tissue" if 10 <= int(match[1]) < 20 else "tumour"
            section = (match[2] or "").upper()
            found[tissue, "frozen" if section in _FROZEN else "diagnostic" if section == "DX" else ""] += 1
    tissues, sections = ({key[part] for key in found if key[part]} for part in (0, 1))
    if len(tissues) < 2 and len(sections) < 2:
        return []
    shown = ", ".join(
        f"{count} {' '.join(filter(None, (section, tissue)))}" for (tissue, section), count in sorted(found.items())
    )
    return [
        f"Warning: TCGA's barcodes tell of slides of several kinds ({shown}), and the labels are those of the patients: leave slides that "
        "are not meant out of the features, or of the label table"
    ]


def _groups(names: set[str], key: object) -> list[list[str]]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[key(name)].append(name)  # type: ignore[operator]
    return [group for group in alike.values() if len(group) > 1]


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _without_zeros(text: str) -> str:
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def _number(text: str) -> str:
    return text.rstrip("0").removesuffix(".") if re.fullmatch(r"[+-]?\d+\.0+", text) else text
