"""Filters over fields of documents, such as `year >= 2020 and lang = 'de'`.

A filter is read by sqlglot's parser and evaluated by Arrow, column by column; it never reaches a database. What a
filter may hold is a closed list, and everything else is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from shortlist.errors import UserError, unknown

LONGEST_FILTER = 20_000
"""Most characters of a filter."""
DEEPEST = 200
"""Most of the words and, or and not, and of parentheses, in a filter."""
FIELDS_NAMED = 80
"""Most characters of a filter that an error repeats."""
EXAMPLE = "year >= 2020 and lang = 'de'"

WORDS_OF_KINDS = ["AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "NULL", "TRUE", "FALSE"]
SIGNS = ["L_PAREN", "R_PAREN", "COMMA", "DASH", "EQ", "NEQ", "LT", "LTE", "GT", "GTE"]
SYNTAX = frozenset([*WORDS_OF_KINDS, *SIGNS, "NUMBER", "STRING", "IDENTIFIER"])
"""The tokens that come through, by the names that sqlglot gives them."""

Value = str | int | float | bool
FieldColumns = Mapping[str, Any]
"""A field: Arrow arrays by the kind of their values, null where a document has no value of this kind."""

EXPRESSIONS = {
    "number": "numbers",
    "text": "text",
    "flag": "true or false",
    "texts": "lists of text",
    "numbers": "lists of numbers",
    "object": "objects",
}
"""Kinds of values, and what errors call them."""
LIST_KINDS = {"text": "texts", "number": "numbers"}
"""The kind of a list with elements of a kind."""


@runtime_checkable
class Fields(Protocol):
    """The fields that a filter can name."""

    def names(self) -> Sequence[str]:
        """List the fields."""
        ...

    def columns(self, name: str) -> FieldColumns:
        """Return a field's values by kind."""
        ...


class WhereError(UserError):
    """A filter that cannot be read or does not fit the fields."""


class _FaultError(Exception):
    """A fault in a filter, and the character where it is."""

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


class _Condition(NamedTuple):
    """A field with one value, as it stands in a filter."""

    field: Any
    columns: FieldColumns

    def fault(self, message: str) -> _FaultError:
        return _FaultError(f"{self.field.name} {message}", self.field.this.meta.get("start"))


def matches(where: str, fields: Fields) -> Bool[np.ndarray, " docs"]:
    """Say of each document whether it fits a filter.

    As in SQL, a document without the field fits no comparison with it, and fits neither where that is negated.

    Raises:
        WhereError: the filter cannot be read, names an unknown field, or compares a field with what it does not hold.
    """
    try:
        found = _mask(_parsed(where), fields)
    except _FaultError as fault:
        shown = where if len(where) <= FIELDS_NAMED else f"{where[:FIELDS_NAMED]} ..."
        at = "" if fault.place is None else f"at character {fault.place + 1}: "
        raise WhereError(f"where {shown!r}: {at}{fault}") from None
    return found.fill_null(False).to_numpy(zero_copy_only=False)


def _parsed(where: str) -> Any:
    """Parse a filter into an expression of sqlglot.

    Only tokens in SYNTAX come through; every other word is the name of a field. So a field may be called as a
    word of SQL is, such as `end` or `date`.
    """
    from sqlglot.errors import ParseError, TokenError
    from sqlglot.parser import Parser
    from sqlglot.tokens import Tokenizer

    if not where.strip():
        raise _FaultError(f"is empty; expected a filter such as {EXAMPLE}.")
    if len(where) > LONGEST_FILTER:
        raise _FaultError(f"has {len(where):,} characters; expected at most {LONGEST_FILTER:,}.")
    try:
        tokens = [_token(token) for token in Tokenizer().tokenize(where)]
    except TokenError:
        raise _FaultError("a text is not closed; expected a second quote.", where.rfind("'")) from None
    if sum(token.token_type.name in ("AND", "OR", "NOT", "L_PAREN", "DASH") for token in tokens) > DEEPEST:
        raise _FaultError(f"has more than {DEEPEST} of and, or, not and parentheses; make it shorter, as by in (...).")
    try:
        expressions = Parser().parse(tokens, where)
    except ParseError as error:
        raise _misread(where, error.errors[0]) from None
    if len(expressions) != 1 or expressions[0] is None:
        raise _FaultError(f"is not one filter; expected such as {EXAMPLE}.")
    return expressions[0]


def _token(token: Any) -> Any:
    """Let a token of a filter through, or make it the name of a field.

    Raises:
        _FaultError: a filter has no such sign.
    """
    from sqlglot.tokens import Token, TokenType  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]

    kind, where = token.token_type, (token.line, token.col, token.start, token.end)
    if kind.name in SYNTAX:
        return token
    if kind is TokenType.VAR and token.text.lower() == "has":
        return Token(TokenType.GLOB, token.text, *where)  # read as a comparison of two sides, which `has` is
    if not token.text.replace("_", "a").replace("$", "a").isalnum():
        signs = "=, !=, <, <=, > and >="
        raise _FaultError(
            f"found {token.text!r}; expected fields, values and {signs} (other names: in double quotes).", token.start
        )
    return Token(TokenType.IDENTIFIER, token.text, *where)


def _misread(where: str, fault: Mapping[str, Any]) -> _FaultError:
    near = fault.get("highlight") or ""
    place = len(fault["start_context"]) if len(where) < 100 else where.find(near)  # sqlglot shows 100 characters
    return _FaultError(f"cannot be read near {near!r}; expected such as {EXAMPLE}.", max(0, place))


def _mask(node: Any, fields: Fields) -> Any:
    """Evaluate an expression to an array of true, false and null."""
    kind = type(node).__name__
    if kind not in _EVALUATE:
        raise _FaultError(f"{node.sql()!r} is no condition; expected such as {EXAMPLE}.")
    found = _EVALUATE[kind](node, fields)
    return _inverted(found) if node.args.get("negate") else found


def _compute() -> Any:
    """Return Arrow's functions, which no type checker knows."""
    return import_module("pyarrow.compute")


def _inverted(mask: Any) -> Any:
    pc = _compute()
    return pc.invert(mask)


def _both(node: Any, fields: Fields) -> Any:
    pc = _compute()
    return pc.and_kleene(_mask(node.this, fields), _mask(node.expression, fields))


def _either(node: Any, fields: Fields) -> Any:
    pc = _compute()
    return pc.or_kleene(_mask(node.this, fields), _mask(node.expression, fields))


def _not(node: Any, fields: Fields) -> Any:
    return _inverted(_mask(node.this, fields))


def _paren(node: Any, fields: Fields) -> Any:
    return _mask(node.this, fields)


def _true(node: Any, fields: Fields) -> Any:
    """Evaluate a field that stands alone and must be true."""
    return _compared(_condition(node, fields), "equal", True)


def _is(node: Any, fields: Fields) -> Any:
    """Evaluate `is null`, `is true` and `is false`."""
    condition, other = _condition(node.this, fields), type(node.expression).__name__
    if other == "Boolean":
        return _compared(condition, "equal", bool(node.expression.this))
    if other != "Null":
        raise condition.fault("is compared by `is`; expected null, true or false behind it.")
    return _inverted(_present(condition.columns))


def _comparison(function: str, turned: str) -> Callable[[Any, Fields], Any]:
    """Return the evaluation of a comparison; `turned` is the same one from right to left."""

    def evaluate(node: Any, fields: Fields) -> Any:
        left, right = node.this, node.expression
        if _is_field(left) and _is_field(right):
            hint = f"text stands in single quotes: '{right.name}'"
            raise _FaultError(f"{left.name} is compared with another field, {right.name}; {hint}.", _place(right))
        if _is_field(right):
            return _compared(_condition(right, fields), turned, _value(left))
        return _compared(_condition(left, fields), function, _value(right))

    return evaluate


def _unequal(node: Any, fields: Fields) -> Any:
    return _inverted(_comparison("equal", "equal")(node, fields))


def _between(node: Any, fields: Fields) -> Any:
    pc = _compute()
    condition = _condition(node.this, fields)
    low, high = _value(node.args["low"]), _value(node.args["high"])
    return pc.and_kleene(_compared(condition, "greater_equal", low), _compared(condition, "less_equal", high))


def _like(node: Any, fields: Fields) -> Any:
    return _matching(node, fields, ignore_case=False)


def _ilike(node: Any, fields: Fields) -> Any:
    return _matching(node, fields, ignore_case=True)


def _matching(node: Any, fields: Fields, *, ignore_case: bool) -> Any:
    pc = _compute()
    condition, pattern = _condition(node.this, fields), _value(node.expression)
    if not isinstance(pattern, str):
        raise condition.fault(f"is compared with {pattern!r} by `like`; expected text, in which % stands for any text.")
    column = _of_kind(condition, "text", pattern)
    return _otherwise_false(condition, ["text"], pc.match_like(column, pattern, ignore_case=ignore_case))


def _has(node: Any, fields: Fields) -> Any:
    return _holds(_condition(node.this, fields), [_value(node.expression)])


def _in(node: Any, fields: Fields) -> Any:
    """Evaluate `field in (...)` and `'value' in field`."""
    if (field := node.args.get("field")) is not None:
        return _holds(_condition(field, fields), [_value(node.this)])
    condition, values = _condition(node.this, fields), node.expressions
    if not values:
        raise condition.fault("is compared with an empty list; expected in (...) with values.")
    return _holds(condition, [_value(value) for value in values])


def _holds(condition: _Condition, values: Sequence[Value]) -> Any:
    """Say where a field is a value, or a list with one of them."""
    import pyarrow as pa

    pc = _compute()
    by_kind: dict[str, list[Value]] = {}
    for value in values:
        by_kind.setdefault(_kind(value), []).append(value)
    masks, kinds = [], []
    for kind, wanted in by_kind.items():
        there = [name for name in (kind, LIST_KINDS.get(kind)) if name is not None and name in condition.columns]
        if not there:
            raise _wrong(condition, wanted[0])
        kinds += there
        masks += [_IS_ONE[name](condition.columns[name], wanted) for name in there]
    filled = [pc.fill_null(mask, False) for mask in masks]
    valid = _present({name: condition.columns[name] for name in kinds})
    return _otherwise_false(condition, kinds, pc.if_else(valid, reduce(pc.or_, filled), pa.scalar(None, pa.bool_())))


def _is_one(column: Any, values: Sequence[Value]) -> Any:
    import pyarrow as pa

    pc = _compute()
    wanted = pa.array(values)
    if wanted.type != column.type and pa.types.is_floating(wanted.type):
        column = column.cast(pa.float64())
    return pc.is_in(column, wanted.cast(column.type))


def _has_one(column: Any, values: Sequence[Value]) -> Any:
    """Say of each list whether one of the values is in it."""
    import pyarrow as pa

    pc = _compute()
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    elements, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    found = np.zeros(len(lists), dtype=bool)
    found[parents.filter(pc.fill_null(_is_one(elements, values), False)).to_numpy()] = True
    return pa.array(found)


_IS_ONE = {"number": _is_one, "text": _is_one, "flag": _is_one, "texts": _has_one, "numbers": _has_one}


def _compared(condition: _Condition, function: str, value: Value) -> Any:
    pc = _compute()
    kind = _kind(value)
    column = _of_kind(condition, kind, value)
    if kind == "flag" and function != "equal":
        raise condition.fault("holds true or false, which are compared by = and != only.")
    return _otherwise_false(condition, [kind], getattr(pc, function)(column, value))


def _of_kind(condition: _Condition, kind: str, value: Value) -> Any:
    if kind not in condition.columns:
        raise _wrong(condition, value)
    return condition.columns[kind]


def _wrong(condition: _Condition, value: Value) -> _FaultError:
    kind, columns = _kind(value), condition.columns
    held = " and ".join(EXPRESSIONS[name] for name in columns) or "nothing"
    way = f"; say {condition.field.name} has {_written(value)}" if LIST_KINDS.get(kind) in columns else ""
    one = {"number": "a number", "text": "text", "flag": "true or false"}[kind]
    return condition.fault(f"holds {held}, and {_written(value)} is {one}{way}.")


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)


def _otherwise_false(condition: _Condition, kinds: Sequence[str], mask: Any) -> Any:
    """Make a mask false where the field holds a value of another kind."""
    pc = _compute()
    others = {kind: column for kind, column in condition.columns.items() if kind not in kinds}
    return pc.if_else(pc.and_(pc.is_null(mask), _present(others)), False, mask) if others else mask


def _present(columns: FieldColumns) -> Any:
    """Say which documents have the field."""
    pc = _compute()
    return reduce(pc.or_, [pc.is_valid(column) for column in columns.values()])


def _is_field(node: Any) -> bool:
    return type(node).__name__ == "Column"


def _place(node: Any) -> int | None:
    return node.this.meta.get("start") if _is_field(node) else None


def _condition(node: Any, fields: Fields) -> _Condition:
    """Find the field that a condition is about."""
    if not _is_field(node) or node.table:
        hint = "a name with other signs than letters, digits and _ stands in double quotes"
        raise _FaultError(f"{node.sql()!r} is no field; expected such as {EXAMPLE} ({hint}).")
    names = fields.names()
    if node.name not in names:
        raise _FaultError(f"{unknown('field', node.name, names)}{_listed(node.name, names)}", _place(node))
    return _Condition(node, fields.columns(node.name))


def _listed(name: str, names: Iterable[str]) -> str:
    """List the fields, unless the error for an unknown one does."""
    said = str(unknown("field", name, names))
    return f" Fields: {', '.join(sorted(names))}." if "perhaps" in said else ""


def _value(node: Any) -> Value:
    """Read a value: a number, a text, true or false."""
    kind = type(node).__name__
    if kind == "Literal" and node.is_string:
        return node.this
    if kind == "Literal":
        number = int(node.this) if node.this.isdecimal() else float(node.this)
        return number if abs(number) < 2**63 else float(number)  # Arrow's whole numbers end there
    if kind == "Boolean":
        return bool(node.this)
    if kind == "Neg" and type(node.this).__name__ == "Literal" and not node.this.is_string:
        negated = _value(node.this)
        assert not isinstance(negated, str)
        return -negated
    if kind == "Null":
        raise _FaultError("nothing equals null; expected `is null` or `is not null`.")
    hint = f"; text stands in single quotes: '{node.name}'" if _is_field(node) else ""
    raise _FaultError(f"{node.sql()!r} is no value; expected a number, a text, true or false{hint}.", _place(node))


def _kind(value: Value) -> str:
    return {bool: "flag", str: "text", int: "number", float: "number"}[type(value)]


_EVALUATE: dict[str, Callable[[Any, Fields], Any]] = {
    "And": _both,
    "Or": _either,
    "Not": _not,
    "Paren": _paren,
    "Column": _true,
    "Is": _is,
    "EQ": _comparison("equal", "equal"),
    "NEQ": _unequal,
    "LT": _comparison("less", "greater"),
    "LTE": _comparison("less_equal", "greater_equal"),
    "GT": _comparison("greater", "less"),
    "GTE": _comparison("greater_equal", "less_equal"),
    "Between": _between,
    "Like": _like,
    "ILike": _ilike,
    "Glob": _has,
    "In": _in,
}
"""What a filter may hold, by the name that sqlglot gives it."""
