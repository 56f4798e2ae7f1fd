"""Before anything is loaded: what a model needs, how fast it may be on a machine, and whether the machine is sound.

Counts come from the headers of a model's files or from its configuration; its weights are never read. Rates are upper
bounds from measured limits of the machine.
"""
