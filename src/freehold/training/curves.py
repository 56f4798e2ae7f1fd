"""The losses of a conversion as files: one JSON line a step, and a picture."""

from __future__ import annotations

import json
from pathlib import Path

from freehold.training.convert import curves

_SMOOTH = 20


def write_curves(work: Path, out: Path) -> list[Path]:
    """Writes OUT/losses.jsonl, and OUT/losses.png where matplotlib is installed."""
    found = curves(work)
    lines = out / "losses.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for layer, losses in found.items():
            for step, loss in enumerate(losses, 1):
                file.write(json.dumps({"layer": layer, "step": step, "kl_nats": round(loss, 5)}) + "\n")
    try:
        import matplotlib
    except ImportError:
        return [lines]
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for layer, losses in found.items():
        smooth = [sum(losses[max(0, i - _SMOOTH) : i + 1]) / min(i + 1, _SMOOTH + 1) for i in range(len(losses))]
        axes.plot(smooth, linewidth=0.8, color=pyplot.get_cmap("viridis")(layer / max(1, max(found))))
    axes.set(xlabel="step", ylabel="KL(attention || index), nats", yscale="log")
    axes.set_title("One line for each layer: the first dark, the last light", fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out / "losses.png", dpi=130)
    pyplot.close(figure)
    return [lines, out / "losses.png"]
