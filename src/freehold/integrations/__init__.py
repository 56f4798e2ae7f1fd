"""Adapters for other projects. Nothing here is needed by anything else in Freehold."""
