"""Writing packed checkpoints: the matrices of a model as codes of 8 or 4 bits with a scale for every 32 weights."""
