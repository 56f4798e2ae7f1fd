"""Command-line options made from the fields of a frozen dataclass: names, defaults and help have one home."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from freehold.cli.quantities import Size
from freehold.core.errors import FreeholdError

T = TypeVar("T")
Callback = Callable[..., Any]

_SCALARS: dict[object, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


class LogitBias(click.ParamType[tuple[int, float]]):
    """`TOKEN_ID=BIAS`, for example `198=-2.5`."""

    name = "token_id=bias"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, float]:
        """Split and convert one value; a usage error if it is not an integer, `=` and a number."""
        if isinstance(value, tuple):
            return value
        token, _, bias = str(value).partition("=")
        try:
            return int(token), float(bias)
        except ValueError:
            self.fail(f"{value!r} is not TOKEN_ID=BIAS, for example 198=-2.5", param, ctx)


def field_help(cls: type) -> dict[str, str]:
    """Help for each field of a dataclass, read from its docstring's `name: text` entries.

    An entry starts a line or follows a sentence, so that one line may hold two; `a, b: text` speaks of both.
    """
    names = "|".join(field.name for field in fields(cls))
    entry = re.compile(rf"(?:(?<=[.\s])|^)((?:{names})(?:, (?:{names}))*): ")
    # The split alternates: text before the first entry, then (names, text) pairs.
    pieces = entry.split(cls.__doc__ or "")
    found: dict[str, str] = {}
    for heading, text in zip(pieces[1::2], pieces[2::2], strict=True):
        # On a command line, None is an option that was not given.
        sentence = re.sub(r"\bNone: ", "left out: ", " ".join(text.split()))
        found.update(dict.fromkeys(heading.split(", "), sentence[:1].upper() + sentence[1:]))
    return found


MODELS_OWN = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})
"""Fields of `SamplingParams` for which a model's files may have another default."""


def dataclass_options(
    cls: type, *, into: str, without: Collection[str] = (), models_own: Collection[str] = ()
) -> Callable[[Callback], Callback]:
    """Give a command one option for each field of `cls`.

    The command receives one dict, as keyword argument `into`, with the values of all fields but those in
    `without`; `build` makes the dataclass of it. Defaults and help come from the dataclass; of fields in `models_own`
    the help says that the model's own default comes first.
    """
    hints = get_type_hints(cls)
    help_of = field_help(cls)
    shown = [field for field in fields(cls) if field.name not in without]

    def decorate(callback: Callback) -> Callback:
        @wraps(callback)
        def collect(*args: Any, **kwargs: Any) -> Any:
            values = {field.name: kwargs.pop(field.name) for field in shown}
            for field in shown:
                if _is_mapping(hints[field.name]):
                    values[field.name] = dict(values[field.name])
            return callback(*args, **kwargs, **{into: values})

        decorated: Callback = collect
        for field in reversed(shown):  # click lists options in the reverse order of decoration
            text = help_of.get(field.name, "")
            decorated = _option(field, hints[field.name], text, field.name in models_own)(decorated)
        return decorated

    return decorate


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make the dataclass; a value that it refuses is a usage error."""
    try:
        return cls(**values)
    except FreeholdError as error:
        raise click.UsageError(str(error)) from error


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a running command's values that the user gave, in whatever way; the others are defaults."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name: value for name, value in values.items() if context.get_parameter_source(name) is not default}


def _option(field: Field[Any], hint: Any, text: str, models_own: bool) -> Callable[[Callback], Callback]:
    flag = "--" + field.name.replace("_", "-")
    default = field.default if field.default is not MISSING else None
    common: dict[str, Any] = {"help": text, "default": default, "show_default": default is not None}
    if models_own:
        common["show_default"] = "the model's own" if default is None else f"the model's own, else {default}"
    hint = _without_none(hint)
    if hint is int and field.name.endswith(("_bytes", "_budget")):
        return click.option(flag, field.name, type=Size(), **common)
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}" if default else flag, field.name, is_flag=True, **common)
    if get_origin(hint) is Literal:
        return click.option(flag, field.name, type=click.Choice(get_args(hint)), **common)
    if get_origin(hint) is tuple:
        common |= {"show_default": False, "help": f"{text} May be given several times."}
        return click.option(flag, field.name, multiple=True, type=_SCALARS[get_args(hint)[0]], **common)
    if _is_mapping(hint):
        common |= {"default": (), "show_default": False, "help": f"{text} May be given several times."}
        return click.option(flag, field.name, multiple=True, type=LogitBias(), **common)
    return click.option(flag, field.name, type=_SCALARS[hint], **common)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (only,) = (part for part in get_args(hint) if part is not type(None))
    return only


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)
