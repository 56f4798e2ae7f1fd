"""A plot of the attention suite: how many times faster than dense, over the context."""

from __future__ import annotations

from pathlib import Path

from freehold.bench.report import Report
from freehold.core.errors import ArgumentError


def draw_ratios(report: Report, path: Path) -> None:
    """Writes a PNG. Raises ArgumentError if matplotlib is not installed (`pip install 'freehold[plots]'`)."""
    try:
        import matplotlib
    except ImportError:
        raise ArgumentError("--plot needs matplotlib: pip install 'freehold[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    rows = report.data["rows"]
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row for row in rows if row["phase"] == phase]
        axes.plot(
            [r["context"] for r in mine], [r["speed_ratio"] for r in mine], marker="o", label=f"{phase}, torch dense"
        )
        if phase == "decode":
            floor = [r["floor_ratio"] for r in mine]
            axes.plot(
                [r["context"] for r in mine], floor, marker=".", linestyle="--", label="decode, floor of any dense"
            )
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel="times faster")
    axes.set_title(report.title + "\n" + report.head[0], fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
