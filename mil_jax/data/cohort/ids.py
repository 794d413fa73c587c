"""Names of slides and patients: which name in a table means which slide, and whose slide it is.

Ids are text. Only known file extensions are cut off: the text after a dot may be part of the id, as in TCGA's
TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF-B4BD-C6B76294C291. Barcode fields: project, tissue source site, participant.
"""

from __future__ import annotations

import re
import signal
import threading
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mil_jax.data.tables import listed
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.slide_bag import FEATURE_EXTENSIONS, SLIDE_EXTENSIONS

EXTENSIONS = frozenset(extension.lstrip(".") for extension in FEATURE_EXTENSIONS + SLIDE_EXTENSIONS)
_TCGA_PATIENT = re.compile(r"(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)
_REGEX_SECONDS = 10.0  # for all slides of a cohort; a usual pattern takes microseconds each
_SAMPLE_LENGTH = len("TCGA-XX-XXXX-01")


def strip_extension(name: str) -> str:
    """`sub/slide.svs.h5` -> `sub/slide`: known extensions only, whatever their case; `\\` reads as `/`; accents are composed."""
    name = unicodedata.normalize("NFC", name).strip().replace("\\", "/")
    while True:
        stem, dot, last = name.rpartition(".")
        if not dot or not stem or stem.endswith("/") or last.lower() not in EXTENSIONS:
            return name
        name = stem


def base_name(name: str) -> str:
    """The id without folder and known extension."""
    return strip_extension(name).rpartition("/")[2]


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts `bag_2` before `bag_10`; different names never compare equal."""

    def key(part: str) -> tuple[int, str]:
        digits = part.lstrip("0")  # compared by their number, then as text: whole numbers of any length
        return (len(digits), digits) if part.isdecimal() else (-1, part)

    return [key(part) for part in re.split(r"(\d+)", name) if part], name


def tcga_patient(name: str) -> str | None:
    """The participant's barcode, TCGA-XX-XXXX, or None."""
    found = _TCGA_PATIENT.match(base_name(name))
    return found[1].upper() if found else None


def tcga_site(name: str) -> str | None:
    """The two characters of the tissue source site (the hospital), or None."""
    found = _TCGA_PATIENT.match(base_name(name))
    return found[2].upper() if found else None


def patients_by_rule(rule: str, slides: Sequence[str]) -> list[str | None]:
    """Patient of each slide by `tcga` or `regex:...` (its first group, else the whole match); None where it fails.

    Raises ConfigError for a regular expression that does not compile, or takes too long.
    """
    if rule == "tcga":
        return [tcga_patient(slide) for slide in slides]
    try:
        pattern = re.compile(rule.removeprefix("regex:"))
    except re.error as error:
        raise ConfigError(f"data.patient={rule!r}: not a regular expression ({error})") from error
    with _limited(rule):
        found = [pattern.search(base_name(slide)) for slide in slides]
    return [(match and (match[1] if pattern.groups else match[0])) or None for match in found]


@contextmanager
def _limited(rule: str) -> Iterator[None]:
    """Ends a search that backtracks without end: patterns come from users and from the run folders of others."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return

    def stop(*_: object) -> None:
        raise ConfigError(
            f"data.patient={rule!r}: takes more than {_REGEX_SECONDS:g} s on these slides; nested repetitions such as (a+)+ are the "
            "usual cause"
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _REGEX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def require_patients(rule: str, slides: Sequence[str], patients: Sequence[str | None]) -> None:
    """Raises DataError naming the slides for which a patient rule gives nothing."""
    lost = [slide for slide, patient in zip(slides, patients, strict=True) if not patient]
    if lost:
        raise DataError(
            f"data.patient={rule!r} gives no patient for {len(lost)} of {len(slides)} slides ({listed(lost)}); "
            "fix the rule, or name a column of the label table"
        )


@dataclass(frozen=True)
class Matches:
    """For each name of a table the slides it means (row numbers, possibly none), and how many names matched how."""

    slides: list[list[int]]
    exact: int
    by_base_name: int
    by_barcode: list[str]


def match_ids(names: Sequence[str], slides: Sequence[str]) -> Matches:
    """Finds the slides that each name means: the same id, else the same base name, else a TCGA barcode prefix. `140.0`, as pandas writes
    whole numbers of a column with gaps, means 140 where no slide is called 140.0.

    A prefix ends at a field of the barcode, and either side may be the shorter one (`...-DX1` and `...-DX1.<uuid>`; a
    participant's or sample's barcode). A slide that a name means exactly is not offered to the prefixes of others.
    """
    found: list[list[int]] = [[] for _ in names]
    whole, base = defaultdict(list), defaultdict(list)
    for number, slide in enumerate(slides):
        whole[strip_extension(slide)].append(number)
        base[base_name(slide)].append(number)
    exact = by_base = 0
    for place, name in enumerate(names):
        if same := whole.get(strip_extension(name)):
            found[place], exact = same, exact + 1
        elif same := base.get(base_name(name)) or base.get(_whole_number(name)):
            found[place], by_base = same, by_base + 1
    taken = {number for numbers in found for number in numbers}
    left = [place for place, numbers in enumerate(found) if not numbers and tcga_patient(names[place])]
    if not left:
        return Matches(found, exact, by_base, [])
    prefixes: dict[str, list[int]] = defaultdict(list)
    for number, slide in enumerate(slides):
        if number not in taken:
            for prefix in _barcode_prefixes(base_name(slide)):
                prefixes[prefix].append(number)
    by_barcode = []
    for place in left:
        name = base_name(names[place])
        shorter = (base[prefix] for prefix in reversed(_barcode_prefixes(name)) if prefix in base)
        found[place] = prefixes.get(name) or [number for number in next(shorter, []) if number not in taken]
        if found[place]:
            by_barcode.append(names[place])
    return Matches(found, exact, by_base, by_barcode)


def _whole_number(name: str) -> str:
    found = re.fullmatch(r"(\d+)\.0+", name.strip())
    return found[1] if found else ""


def _barcode_prefixes(name: str) -> list[str]:
    """Proper prefixes of a TCGA barcode that end at a field (the sample also without its vial), participant first."""
    if not tcga_patient(name):
        return []
    ends = [place for place, character in enumerate(name) if character in "-._"]
    if len(name) > _SAMPLE_LENGTH and name[_SAMPLE_LENGTH].isalpha():
        ends.append(_SAMPLE_LENGTH)
    return [name[:end] for end in sorted(ends) if end >= len("TCGA-XX-XXXX")]
