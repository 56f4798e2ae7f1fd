"""What is known of a model and of the way to it: who says so, since when, and what contradicts it."""

from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.loading import load_disclosure

__all__ = ["Disclosure", "load_disclosure"]
