"""Checkpoints: finding, fetching and opening them, and their tensors by name. Knows no model."""
