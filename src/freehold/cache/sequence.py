"""One request's view of the cache: its tokens, and the slots of their blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.cache.prefix import Node


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens [0, num_computed) are in the cache. `slots[b]` holds block b; the first `num_shared` blocks are
    in the prefix tree and must not be written. Without `share` nothing of it is kept."""

    node: Node
    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_shared: int = 0
    share: bool = True
