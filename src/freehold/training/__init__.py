"""Training: the index branch of a dense model, and small sparse models from scratch.

Nothing here knows of the engine: a frozen model is run over whole windows of text, through the same kernels.
"""
