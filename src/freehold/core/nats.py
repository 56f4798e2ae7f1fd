"""Losses in nats."""

from __future__ import annotations

MOST_NATS = 700.0
"""A mean loss that is larger has a perplexity which no float holds."""
