"""The life of requests: admitted, scheduled into batches, computed, sampled, reported.

`Engine.step` is the whole loop. The engine knows no HTTP and no file formats.
"""
