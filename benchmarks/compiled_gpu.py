"""What a program does that XLA has compiled for a GPU, read from the text of its optimised module.

A kernel is an instruction outside of fusions. Bytes are those of its operands and results, each counted once; where a kernel slices an
array in a loop, the array counts once over all rounds. Rounds of a loop of unknown trip count count once.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

_WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
_WIDTHS |= {"s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_WIDTHS)})\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*\)) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NO_KERNEL = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all"}
_PRODUCTS = ("dot", "gemm", "cublas")


@dataclass(frozen=True)
class _Instruction:
    """name = shape operation(rest"""

    name: str
    shape: str
    operation: str
    rest: str

    def named(self, attribute: str) -> str:
        """The computation that an attribute names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Kernel:
    """launches: in one run of the program. moved: bytes of all of them. kind: its operations, by which products are told."""

    name: str
    kind: str
    shape: str
    launches: int
    moved: float

    @property
    def is_product(self) -> bool:
        """Whether it is one of the matrix units."""
        return any(word in self.kind for word in _PRODUCTS)


@dataclass(frozen=True)
class CompiledProgram:
    """kernels: in order. unknown_trips: loops before each of whose rounds the host waits for the device. exact_products: of full float32
    precision, where others may be TF32.
    """

    kernels: tuple[Kernel, ...]
    known_trips: tuple[int, ...]
    unknown_trips: int
    scatters: int
    sorts: int
    exact_products: int

    @property
    def launches(self) -> int:
        """Of one run."""
        return sum(kernel.launches for kernel in self.kernels)

    def gigabytes(self, *, products: bool) -> float:
        """What matrix products move in a run, or all other kernels."""
        return sum(kernel.moved for kernel in self.kernels if kernel.is_product == products) / 1e9


def read(text: str, *, whole: float = math.inf, part: float = 0.0) -> CompiledProgram:
    """text: of the optimised module. whole, part: a kernel that is given at least `whole` bytes reads `part` of them; so it is with a
    cohort, of which a step reads some bags.
    """
    computations, entry = _computations(text)
    known, unknown = list[int](), list[str]()
    kernels = tuple(_kernels(computations, entry, (1, 1), (whole, part), known, unknown))
    operations = collections.Counter(one.operation for inner in computations.values() for one in inner)
    sorts = operations["sort"] + len(re.findall(r'custom_call_target="[^"]*[Ss]ort', text))
    exact = len(re.findall(r'operand_precision=\{highest|"operand_precision":\["HIGHEST"', text))
    return CompiledProgram(kernels, tuple(known), len(unknown), operations["scatter"], sorts, exact)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """All of them by name, and the name of the first to run."""
    found: dict[str, list[_Instruction]] = {}
    current, entry = None, ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened and not line.startswith(" "):
            current = found.setdefault(opened.group(2), [])
            entry = opened.group(2) if opened.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (matched := _INSTRUCTION.match(line)):
            current.append(_Instruction(*matched.groups()))
    return found, entry


def _kernels(
    computations: dict[str, list[_Instruction]],
    name: str,
    rounds: tuple[int, int],
    reads: tuple[float, float],
    known: list[int],
    unknown: list[str],
) -> Iterator[Kernel]:
    """rounds: of all loops around, and of the innermost."""
    shapes = {one.name: one.shape for one in computations.get(name, ())}
    for one in computations.get(name, ()):
        if one.operation == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', one.rest)
            if trips:
                known.append(int(trips.group(1)))
            else:
                unknown.append(one.name)
            count = int(trips.group(1)) if trips else 1
            inner = [one.named("body")], (rounds[0] * count, count)
        elif one.operation == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
            listed = re.findall(r"[\w.\-]+", branches.group(1)) if branches else []
            inner = listed or [one.named("true_computation"), one.named("false_computation")], rounds
        elif one.operation == "call":
            inner = [one.named("to_apply")], rounds
        else:
            inner = [], rounds
            if one.operation not in _NO_KERNEL and not one.operation.endswith("-done"):
                yield _kernel(computations, one, shapes, rounds, reads)
        for body in inner[0]:
            yield from _kernels(computations, body, inner[1], reads, known, unknown)


def _kernel(
    computations: dict[str, list[_Instruction]],
    one: _Instruction,
    shapes: dict[str, str],
    rounds: tuple[int, int],
    reads: tuple[float, float],
) -> Kernel:
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)
    fused = [inner.operation for inner in computations.get(one.named("calls"), ())] if one.operation == "fusion" else []
    kind = target.group(1) if target else " ".join(sorted({one.operation, *fused}))
    operands = re.findall(r"%([\w.\-]+)", one.rest.split("), ")[0])
    given, made = sum(_bytes(shapes.get(name, "")) for name in operands), _bytes(one.shape)
    if given >= reads[0]:
        given = reads[1]
    if "dynamic-update-slice" in kind:
        given, made = given / rounds[1], made / rounds[1]
    elif "dynamic-slice" in kind:
        given /= rounds[1]
    return Kernel(one.name, kind.lower(), one.shape, rounds[0], (given + made) * rounds[0])


def _bytes(shape: str) -> int:
    return sum(
        _WIDTHS[kind] * math.prod(map(int, filter(None, axes.split(",")))) for kind, axes in _ARRAY.findall(shape)
    )
