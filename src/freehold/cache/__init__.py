"""The block cache: slots in RAM, sharing of common prefixes, and a recount that finds every leak.

Blocks are handed to attention as values of `freehold.core.blocks`; nothing here computes.
"""

from freehold.cache.cache import BlockCache, CacheStats
from freehold.cache.pool import BlockPool
from freehold.cache.sequence import Sequence

__all__ = ["BlockCache", "BlockPool", "CacheStats", "Sequence"]
