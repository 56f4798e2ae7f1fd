"""Cost by load: own hardware beside the list prices of others, with the points where they meet."""

from __future__ import annotations

from pathlib import Path

from freehold.core.errors import ConfigError
from freehold.governance.cost.compare import Comparison
from freehold.governance.cost.hardware import HOURS_PER_MONTH


def plot_comparison(found: Comparison, path: Path) -> None:
    """Draw a month's cost over a month's tokens. Raises ConfigError without matplotlib, hardware or load."""
    if found.here is None:
        raise ConfigError("there is no own hardware to draw")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'freehold[plots]'") from error
    count = sum(usage.input_tokens + usage.output_tokens for usage in found.traffic.own)
    if not count or not found.here.utilisation:
        raise ConfigError("the period has no load to draw")
    months = float(found.traffic.period.hours / HOURS_PER_MONTH)
    tokens = count / months / 1e6
    most = 1 / float(found.here.utilisation)
    meetings = [float(even.load) for even in found.break_even if even.load is not None]
    # Everything that happens up to three times what the machines carry; farther away it says nothing about them.
    end = 1.15 * max([1.0, most, *(load for load in meetings if load <= 3 * most)])
    loads = [end * step / 200 for step in range(201)]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    fixed, busy = float(found.here.per_month.fixed), float(found.here.per_month.energy_busy)
    axes.plot([x * tokens for x in loads], [fixed + x * busy for x in loads], color="black", lw=2, label="here")
    for other in found.alternatives:
        rate = float(other.own) / months
        (line,) = axes.plot([x * tokens for x in loads], [x * rate for x in loads], label=other.entry.id)
        for even in found.break_even:
            if even.alternative == other.entry.id and even.load is not None and even.load <= end:
                at = float(even.load)
                axes.plot([at * tokens], [at * rate], "o", color=line.get_color())
    axes.axvline(tokens, color="grey", ls=":", label="measured load")
    axes.axvspan(most * tokens, end * tokens, color="grey", alpha=0.15, lw=0, label="more than these machines carry")
    axes.set(xlabel="million tokens a month, input and output", ylabel="US dollars a month")
    axes.set_xlim(0, end * tokens)
    axes.set_ylim(0, 2.5 * fixed)
    axes.legend(frameon=False)
    axes.set_title(f"The same requests, by load; prices of {found.table.day}", fontsize=10)
    with matplotlib.rc_context({"svg.hashsalt": "freehold"}):
        figure.savefig(path, dpi=120)
