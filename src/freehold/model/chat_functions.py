"""What chat templates may call: filters, functions and operators, each sized beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import safe_range
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from freehold.model.chat_limits import BUDGET, Budget, join_pieces, measure

# Left out of Jinja's own: those that pad or wrap to any width, run regular expressions, write HTML, print
# objects or draw random numbers.
_FILTERS = (
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "int",
    "items",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
)
_WIDE_FORMAT = re.compile(r"\d{4}|\*|:[^}]*\{")
_INTEGER_BITS = 1024


def expect_binop(budget: Budget, op: str, left: Any, right: Any) -> None:
    if op == "%" and isinstance(left, str):
        _expect_format(budget, left, left.count("%"), right)
    if op == "*":
        for repeated, times in ((left, right), (right, left)):
            if isinstance(repeated, (str, list, tuple)) and isinstance(times, int):
                budget.expect(measure(repeated, 1 << 62) * times)
    if op in ("+", "-", "*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if op == "**" else left.bit_length() + right.bit_length()
        if bits > _INTEGER_BITS:
            raise SecurityError(f"a chat template may not compute integers of more than {_INTEGER_BITS} bits")


def _expect_format(budget: Budget, form: str, num_fields: int, values: Any) -> None:
    if _WIDE_FORMAT.search(form):
        raise SecurityError("a chat template may not format with computed widths, or widths above 999")
    budget.expect(len(form) + num_fields * (1000 + measure(values, 1 << 62)))


def sized_method(budget: Budget, function: Any) -> Any:
    """`function`, or for a text method that can grow its text one that sizes the result first."""
    bound = getattr(function, "__wrapped__", function)
    text = getattr(bound, "__self__", None)
    if not isinstance(text, str):
        return function
    if bound.__name__ == "join":
        return lambda values: _join_texts(values, text)
    if bound.__name__ == "replace":
        return lambda old, new, count=-1: _replace(text, old, new, None if count < 0 else count)
    if bound.__name__ == "format":

        def sized_format(*args: Any, **kwargs: Any) -> Any:
            _expect_format(budget, text, text.count("{"), [list(args), kwargs])
            return function(*args, **kwargs)

        return sized_format
    return function


def budgeted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose time and result count. `wraps` keeps the marks by which Jinja hands it the context."""

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.tick()
        if any(isinstance(value, Namespace) for value in args):
            raise SecurityError("a chat template may not filter a namespace")
        return budget.take(function(*args, **kwargs))

    return counted


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise SecurityError("a chat template may not use join(attribute=...); use map(attribute=...) | join")
    return _join_texts((str(printable(value)) for value in values), str(d))


def _join_texts(values: Iterable[str], separator: str) -> str:
    budget = BUDGET.get()
    parts: list[str] = []
    size = 0
    for value in values:
        parts.append(value)
        size += len(value) + len(separator)
        budget.expect(size)
    return separator.join(parts)


def _replace(s: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(printable(s)), str(old), str(new)
    times = text.count(old) if count is None else min(text.count(old), count)
    BUDGET.get().expect(len(text) + times * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    columns = len(width) if isinstance(width, str) else width
    BUDGET.get().expect(len(s) + (len(s.splitlines()) + 1) * columns)
    return str(FILTERS["indent"](s, width, first, blank))


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not 0 <= precision <= 20:
        raise SecurityError(f"a chat template may round to 0 to 20 digits, not {precision}")
    return float(FILTERS["round"](value, precision, method))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: nothing is escaped for HTML, nor for ASCII unless asked."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError(f"a chat template may indent JSON by 0 to 16 columns, not {indent}")
    if separators is not None and max(map(len, separators)) > 16:
        raise SecurityError("a chat template may separate JSON by at most 16 characters")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    # Indentation can outgrow the value; then the pieces are counted as they come.
    return encoder.encode(value) if indent is None else join_pieces(encoder.iterencode(value))


def printable(value: Any) -> Any:
    if isinstance(value, (str, bool, int, float, type(None), Undefined, list, tuple, dict)):
        return value
    raise SecurityError(
        f"a chat template may print texts, numbers, lists and dictionaries, not a {type(value).__name__}"
    )


@pass_context
def printable_in_context(context: Context, value: Any) -> Any:
    return printable(value)


def _namespace(*args: Mapping[str, Any], **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    for name, value in attributes.items():
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set the attribute {name!r} of a namespace")
        if isinstance(value, Namespace):
            raise SecurityError("a chat template may not put a namespace into a namespace")
    return Namespace(attributes)


def _raise_exception(message: object) -> None:
    raise JinjaError(str(message))


def _strftime(moment: datetime, form: str) -> str:
    if len(form) > 200 or re.search(r"%[^A-Za-z%]*\d", form):
        raise SecurityError(f"a chat template may not format the time as {form[:40]!r}; widths are not supported")
    return moment.strftime(form)


def filters() -> dict[str, Callable[..., Any]]:
    """The filters of chat templates by name, each under the budget."""
    sized = {"indent": _indent, "join": _join, "replace": _replace, "round": _round, "tojson": _tojson}
    chosen = {name: FILTERS[name] for name in _FILTERS} | sized
    return {name: budgeted(function) for name, function in chosen.items()}


def functions(now: Callable[[], datetime]) -> dict[str, Callable[..., Any]]:
    """The functions of chat templates by name; `now` is their clock."""
    return {
        "cycler": Cycler,
        "dict": dict,
        "joiner": Joiner,
        "namespace": _namespace,
        "raise_exception": _raise_exception,
        "range": safe_range,
        "strftime_now": lambda form: _strftime(now(), form),
    }
