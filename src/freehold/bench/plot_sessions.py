"""A plot of the sessions suite: the latency of each call."""

from __future__ import annotations

from pathlib import Path

from freehold.bench.report import Report
from freehold.core.errors import ArgumentError


def draw_latencies(report: Report, path: Path) -> None:
    """Writes a PNG. Raises ArgumentError if matplotlib is not installed (`pip install 'freehold[plots]'`)."""
    try:
        import matplotlib
    except ImportError:
        raise ArgumentError("--plot needs matplotlib: pip install 'freehold[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row in report.data["rows"]:
        milliseconds = [seconds * 1e3 for seconds in row["call_seconds"]]
        axes.plot(range(1, len(milliseconds) + 1), milliseconds, ".", markersize=3, label=row["name"])
    axes.set(xlabel="call", ylabel="latency, ms", ylim=(0, None))
    axes.set_title(report.title + "\n" + report.head[0], fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
