"""Evaluation: what a model predicts, with its own choice of blocks and with others. It trains nothing."""
