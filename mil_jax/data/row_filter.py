"""`data.filter`: which rows of a label table an expression keeps, in a small language that can only compare.

    age > 60 and subtype in ['A', 'B'] and not (excluded or isnull(stage))

Comparisons of columns with numbers, texts, True and False, and with each other; `in` and `not in` lists; `and`, `or`, `not` (also `&`, `|`,
`~`); `isnull(x)`, `notnull(x)`; parentheses. Names that are no words stand in backticks. The expression is parsed as Python and
walked here: it is never evaluated by anything that could call or reach into something else.

A column whose cells are all numbers compares with numbers, one of True and False with these, any other with texts: a comparison across
these kinds, which would match nothing, is refused. A missing cell (in columns of numbers and flags also one that says so in words) equals
nothing, and differs from everything.
"""

from __future__ import annotations

import ast
import keyword
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mil_jax.data.cell_words import known
from mil_jax.data.tables import as_numbers, brief, listed, mentioned_columns, suggestion
from mil_jax.errors import DataError

_LONGEST = 5_000  # characters; no table needs more, and the parser's own depth is bounded by it
_RESERVED = frozenset(keyword.kwlist) - {"and", "or", "not", "in", "True", "False"}
_FLAGS = {"true": True, "false": False}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt},
    **{ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
}
_MISSING = {"isnull": True, "isna": True, "notnull": False, "notna": False}
_WRITTEN = {"number": "a number, such as 60", "text": "a text in quotes, such as 'A'", "flag": "True or False"}


class _Column(NamedTuple):
    """kind: "number", "text" or "flag". values: its cells, of one type but where they are missing."""

    name: str
    kind: str
    values: pd.Series


def kept_rows(table: pd.DataFrame, expression: str, path: object, header: Sequence[str]) -> np.ndarray:
    """bool [rows]: where the expression is true. path: where the table comes from, header: its columns, for the message.

    Raises DataError, saying what cannot be understood, for anything but the language above.
    """
    return _Filter(table, expression, path, header).kept()


class _Filter:
    def __init__(self, table: pd.DataFrame, expression: str, path: object, header: Sequence[str]) -> None:
        self.table, self.expression, self.path, self.header = table, expression, path, header
        self.quoted: dict[str, str] = {}  # the identifier that stands for a name in backticks

    def kept(self) -> np.ndarray:
        if len(self.expression) > _LONGEST:
            raise self.refusal(f"it has more than {_LONGEST:,} characters")
        try:
            tree = ast.parse(re.sub(r"`([^`]*)`", self._stand_in, self.expression).strip(), mode="eval").body
            return self.truth(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise self.refusal(
                f"{reason}; write a comparison of columns such as \"age > 60 and subtype in ['A', 'B']\""
            ) from error

    def truth(self, node: ast.expr) -> np.ndarray:
        """bool [rows] of a condition."""
        match node:
            case ast.BoolOp(ast.And(), parts):
                return np.logical_and.reduce([self.truth(part) for part in parts])
            case ast.BoolOp(ast.Or(), parts):
                return np.logical_or.reduce([self.truth(part) for part in parts])
            case ast.BinOp(left, ast.BitAnd(), right):
                return self.truth(left) & self.truth(right)
            case ast.BinOp(left, ast.BitOr(), right):
                return self.truth(left) | self.truth(right)
            case ast.UnaryOp(ast.Not() | ast.Invert(), inner):
                return ~self.truth(inner)
            case ast.Compare(left, comparisons, others):
                sides = [left, *others]
                return np.logical_and.reduce(
                    [self.compared(a, how, b) for a, how, b in zip(sides, comparisons, others)]
                )
            case ast.Call(ast.Name(function), [ast.Name() as name], []) if function in _MISSING:
                return self.column(name).values.isna().to_numpy() == _MISSING[function]
            case ast.Call(ast.Attribute(ast.Name() as name, function), [], []) if function in _MISSING:
                return self.column(name).values.isna().to_numpy() == _MISSING[function]
            case ast.Name():
                column = self.column(node)
                if column.kind != "flag":
                    raise self.refusal(f"{column.name} is not true or false in each row: compare it with something")
                return (column.values == True).to_numpy(bool)  # noqa: E712  missing is neither
            case _:
                raise self.refusal(f"{ast.unparse(node)} is not true or false for each row, or more than a comparison")

    def compared(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> np.ndarray:
        """bool [rows] of one comparison."""
        if isinstance(how, ast.In | ast.NotIn):
            if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple):
                raise self.refusal("`in` asks whether a column is in a list, such as stage in ['I', 'II']")
            column = self.column(left)
            found = column.values.isin([self.like(column, self.constant(one), one) for one in right.elts])
            return found.to_numpy(bool) != isinstance(how, ast.NotIn)
        compare = _COMPARISONS.get(type(how))
        if compare is None:
            raise self.refusal("columns are compared by ==, !=, <, <=, >, >=, in and not in")
        a, b = (self.column(side) if isinstance(side, ast.Name) else None for side in (left, right))
        if a is None and b is None:
            raise self.refusal(f"{ast.unparse(left)} and {ast.unparse(right)} are both no columns")
        if a is not None and b is not None and a.kind != b.kind:
            raise self.refusal(f"{a.name} is a column of {a.kind}s and {b.name} one of {b.kind}s, which never compare")
        x = a.values if a is not None else self.like(b, self.constant(left), left)
        y = b.values if b is not None else self.like(a, self.constant(right), right)
        there = np.ones(len(self.table), bool)
        for side in (a, b):
            there &= True if side is None else side.values.notna().to_numpy()
        result = np.full(len(self.table), isinstance(how, ast.NotEq))
        chosen = [one[there] if isinstance(one, pd.Series) else one for one in (x, y)]
        result[there] = np.asarray(compare(*chosen), bool)
        return result

    def column(self, node: ast.Name) -> _Column:
        """The column of a name, read as what its cells are."""
        name = self.quoted.get(node.id, node.id)
        if name not in self.table:
            raise self.refusal(f"name {name!r} is not defined{suggestion(name, self.header)}")
        cells = self.table[name]
        said = known(cells)  # `[Not Available]` makes no column of texts
        present = said.dropna().astype(str)
        if len(present) and present.str.lower().isin(_FLAGS).all():
            return _Column(name, "flag", said.map(lambda cell: _FLAGS.get(str(cell).lower(), np.nan)))
        numbers = as_numbers(said)
        if not pd.api.types.is_numeric_dtype(numbers):
            numbers = cells
        return _Column(name, "number" if pd.api.types.is_numeric_dtype(numbers) else "text", numbers)

    def constant(self, node: ast.expr) -> Any:
        """A number, text, True or False."""
        match node:
            case ast.UnaryOp(ast.USub(), ast.Constant(value)) if isinstance(value, int | float):
                return -value
            case ast.Constant(value) if isinstance(value, int | float | str):
                return value
            case _:
                raise self.refusal(
                    f"{ast.unparse(node)} is neither a column nor a number, a text in quotes, True or False"
                )

    def like(self, column: _Column | None, value: Any, node: ast.expr) -> Any:
        """The value, as the column's cells are compared with it."""
        assert column is not None
        if column.values.isna().all():
            raise self.refusal(f"all cells of {column.name} are empty")
        kind = "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        if column.kind == "flag" and str(value).lower() in _FLAGS:
            return _FLAGS[str(value).lower()]
        if kind != column.kind:
            example = next(iter(column.values.dropna().astype(str)))
            raise self.refusal(
                f"{column.name} is a column of {column.kind}s (such as {brief(example)}), which {ast.unparse(node)} never equals: "
                f"write {_WRITTEN[column.kind]}"
            )
        return value

    def refusal(self, why: str) -> DataError:
        shown = self.expression if len(self.expression) <= 200 else f"{self.expression[:200]}..."
        words = [name for name in self.header if name in _RESERVED or not name.isidentifier()]
        bare = [f"`{name}`" for name in mentioned_columns(re.sub(r"`[^`]*`", "", self.expression), words) if name]
        hint = f" (write {listed(bare)} in backticks)" if bare else ""
        return DataError(f"data.filter={shown!r} cannot be applied to {self.path}: {why}{hint}")

    def _stand_in(self, match: re.Match[str]) -> str:
        name = f"column_{len(self.quoted)}_in_backticks"
        self.quoted[name] = match[1]
        return name
