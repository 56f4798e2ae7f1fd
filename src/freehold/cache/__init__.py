"""The block cache: slots in RAM, sharing of common prefixes, and a recount that finds every leak.

Blocks are handed to attention as values of `freehold.core.blocks`; nothing here computes.
"""

from freehold.cache.cache import BlockCache, CacheStats
from freehold.cache.disk_tier import record_layout
from freehold.cache.identity import Identity
from freehold.cache.pool import BlockPool
from freehold.cache.sequence import Sequence
from freehold.cache.shelves import taken_bytes
from freehold.cache.store import BlockStore
from freehold.cache.store_lock import StoreLock

__all__ = [
    "BlockCache",
    "BlockPool",
    "BlockStore",
    "CacheStats",
    "Identity",
    "Sequence",
    "StoreLock",
    "record_layout",
    "taken_bytes",
]
