"""One harness and the suites behind `freehold bench`: what Freehold costs beside its rivals and the machine's limits.

Two sides alternate in one run, after a warm-up; figures are medians, and the floors that the machine sets
(read bandwidth, matrix peak) are measured in the same run. A result worse than hoped is shown as it is.
"""
