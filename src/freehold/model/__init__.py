"""Models over the block cache: one file for each model type, and the text format around it."""
