"""Implementations of the operators. They compute; `freehold.attention.api` validates and dispatches."""
