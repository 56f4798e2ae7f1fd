"""JSON schemas at random, out of what can be enforced; bounded, so that answers to them end."""

from __future__ import annotations

import random
from typing import Any


def random_schema(seed: int, depth: int = 3) -> dict[str, Any]:
    """A schema of an object."""
    draw = random.Random(seed)
    return _object(draw, depth)


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(["a", "b b", "c-c", "ä", "name", "n\u4e2d"], draw.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _any(draw, depth - 1) for name in names},
        "required": draw.sample(names, draw.randint(0, len(names))),
        "additionalProperties": False,
    }


def _any(draw: random.Random, depth: int) -> dict[str, Any]:
    flat = [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": draw.randint(-50, 0), "maximum": draw.randint(1, 5000)},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 9.5},
        {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": draw.randint(2, 9)},
        {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 6)},
        {"type": "string", "pattern": "^[a-f]{2,4}$"},
        {"type": "string", "format": "date"},
        {"enum": draw.sample(["x", "yy", 'q"', 3, None, True, 2.5], draw.randint(1, 4))},
        {"const": draw.choice(["k", 0, False])},
        {"type": ["integer", "null"], "minimum": 1, "maximum": 12},
    ]
    if depth <= 0 or draw.random() < 0.5:
        return draw.choice(flat)
    return draw.choice(
        [
            {"type": "array", "items": _any(draw, depth - 1), "minItems": draw.randint(0, 1), "maxItems": 2},
            _object(draw, depth),
            {"anyOf": [_any(draw, depth - 1), _any(draw, depth - 1)]},
        ]
    )
