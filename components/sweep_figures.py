"""A sweep in one figure: parallel coordinates, one line a run, from the values that were varied to the score (Inselberg 1985)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.figures import heading

TICKS = 9  # of an axis, of more values than that
LEGIBLE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}  # where lines cross a label


def places(values: Sequence[str]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return where values stand on an axis from 0 to 1, and its ticks: numbers by size (by magnitude where they span a hundredfold), words evenly."""
    try:
        numbers = [float(value) for value in values]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        names = sorted(set(values))
        at = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return np.array([at[value] for value in values]), [(at[name], name) for name in names]
    scaled = np.log10(numbers) if min(numbers) > 0 and max(numbers) / min(numbers) >= 100 else np.array(numbers)
    low, high = scaled.min(), scaled.max()
    where = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    ticks = sorted({(at, f"{number:.3g}") for at, number in zip(where.tolist(), numbers, strict=True)})
    return where, [tick for i, tick in enumerate(ticks) if i in np.linspace(0, len(ticks) - 1, min(len(ticks), TICKS)).round()]


def parallel(varied: Mapping[str, Sequence[str]], scores: Sequence[float], title: str, axis: str, sign: int) -> Figure:
    """Draw one line a run through the axes of `varied` (key -> its value in every run) and of the score; the better, the brighter and the later drawn."""
    figure = Figure(figsize=(2.6 + 2.4 * len(varied), 5), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    found = [places(values) for values in varied.values()]
    shown = np.array(scores, dtype=np.float64)
    low, high = shown.min(), shown.max()
    height = (shown - low) / (high - low) if high > low else np.full(len(shown), 0.5)
    lines = np.stack([*(where for where, _ in found), height], 1)
    for i in np.argsort(sign * shown):
        rank = height[i] if sign > 0 else 1 - height[i]
        panel.plot(range(lines.shape[1]), lines[i], color=colormaps["viridis"](0.9 * rank), linewidth=1.2 + 1.5 * rank, alpha=0.85, marker="o", markersize=4)
    for i, (_, ticks) in enumerate(found):
        panel.axvline(i, color="0.6", linewidth=1)
        for at, name in ticks:
            panel.annotate(name, (i, at), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=9, bbox=LEGIBLE)
    panel.axvline(len(found), color="0.6", linewidth=1)
    for at, value in ((0.0, low), (1.0, high)):
        panel.annotate(f"{value:.4g}", (len(found), at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    panel.set_xticks(range(lines.shape[1]), [*varied, axis])
    panel.set_xlim(-0.6, len(found) + 0.4)
    panel.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        panel.spines[side].set_visible(False)
    heading(figure, title)
    return figure
