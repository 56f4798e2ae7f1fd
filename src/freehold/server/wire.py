"""What all wire types of OpenAI's family share: strict objects, refusals by name, and their place in the body."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from freehold.core.errors import RequestError, UnsupportedFieldError


def shown(value: object) -> str:
    """A value of a body in a message: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refusal(kind: Literal["unknown", "unsupported", "value"], detail: str, field: str = "") -> PydanticCustomError:
    """An error that parse_request turns into a RequestError; `field` is relative to the validated value."""
    context = {"detail": detail, "field": field}
    if kind == "unknown":
        return PydanticCustomError("unknown_parameter", "{detail}", context)
    if kind == "unsupported":
        return PydanticCustomError("unsupported_parameter", "{detail}", context)
    return PydanticCustomError("invalid_value", "{detail}", context)


class WireModel(BaseModel):
    """A JSON object whose every field is known. OFF: fields not implemented -> values that mean "off"."""

    model_config = ConfigDict(extra="forbid", strict=True)
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        found = handler.resolve_ref_schema(schema)
        found.setdefault("properties", {}).update({name: {"enum": [*values]} for name, values in cls.OFF.items()})
        return schema

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_implemented(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = {field.alias or name for name, field in cls.model_fields.items()}
        known = {}
        for name, given in value.items():
            if name in names:
                known[name] = given
            elif name not in cls.OFF:
                near = difflib.get_close_matches(name[:80], [*names, *cls.OFF], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise refusal("unknown", f"unknown field {shown(name)}{hint}", name[:80])
            elif not any(type(given) is type(off) and given == off for off in cls.OFF[name]):
                raise refusal("unsupported", f"{name!r} is not supported; leave it out", name)
        return known


RequestT = TypeVar("RequestT", bound=BaseModel)


def parse_request(kind: type[RequestT], body: Any) -> RequestT:
    """`body`, a decoded JSON value, as a request of `kind`.

    Raises UnsupportedFieldError for fields that are unknown or not implemented and RequestError for wrong
    types and values, the first problem only; `field` is its path, such as `messages[0].role`.
    """
    if not isinstance(body, dict):
        raise RequestError("the request body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    field = _field_path(body, first)
    if first["type"] == "missing":
        raise RequestError(f"{field} is missing", field=field)
    if first["type"] in ("unknown_parameter", "unsupported_parameter"):
        raise UnsupportedFieldError(first["msg"], field=field)
    raise RequestError(f"{field}: {first['msg']}", field=field)


def _field_path(body: Any, error: ErrorDetails) -> str:
    path = ""
    value = body
    for step in error["loc"]:
        # Locations also hold names of union members and validators, which are nothing in the body.
        if isinstance(value, dict) and step in value:
            path += f".{step}"
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path += f"[{step}]"
        else:
            continue
        value = value[step]
    last = str(error["loc"][-1] if error["type"] == "missing" else error.get("ctx", {}).get("field", ""))
    if last:
        path += last if last.startswith("[") else f".{last}"
    return path.removeprefix(".")
