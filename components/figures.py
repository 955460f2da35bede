"""Figures, returned and never saved: whoever asks for one knows where it goes."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from components.scores import Cost

MARKS = {"base": "s", "teacher": "D", "fused": "*", "fused-distilled": "P", "champion": "v"}
BEFORE = "teacher, not adapted"  # a dashed curve


def heading(figure: Figure, text: str) -> None:
    """Write a figure's title, in as many lines as its width asks for: a letter of 12 points takes about a tenth of an inch."""
    figure.suptitle(textwrap.fill(text, int(10 * figure.get_figwidth())))


@dataclass(frozen=True)
class Curves:
    """One task: its support and query as (inputs, values), and each learner's values [P] at `x` [P]."""

    support: tuple[np.ndarray, np.ndarray]
    query: tuple[np.ndarray, np.ndarray]
    x: np.ndarray
    by_learner: dict[str, np.ndarray]


def adapted_curves(tasks: Sequence[Curves], title: str) -> Figure:
    """Draw one panel a task: the points that were known, those asked for, and every learner's curve; dashed where it starts."""
    figure = Figure(figsize=(12, 3 * ((len(tasks) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots((len(tasks) + 1) // 2, 2, sharex=True, squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=False):
        panel.scatter(*task.query, s=14, color="0.75", label="asked for")
        for i, (name, values) in enumerate(task.by_learner.items()):
            started = name == BEFORE
            color = "0.4" if started else f"C{i}"
            panel.plot(task.x, values, color=color, linestyle="--" if started else "-", linewidth=1.2 if started else 1.8, label=name)
        panel.scatter(*task.support, s=45, color="black", marker="X", zorder=3, label="known")
        truth = np.concatenate([task.support[1], task.query[1]])
        middle, reach = (truth.max() + truth.min()) / 2, max(float(np.ptp(truth)), 0.5) * 0.9
        panel.set_ylim(middle - reach, middle + reach)  # a curve that leaves the picture is wrong by more than all values differ
        panel.grid(alpha=0.3)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    heading(figure, title)
    return figure


def trade_off(learners: Sequence[Cost], title: str, axis: str) -> Figure:
    """Draw score against parameters, and against time for one task; bars are 95 % intervals. An ablation's rows are for the table."""
    learners = [cost for cost in learners if not cost.role.startswith(("recipe-", "joined-"))]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name, values in (
        (panels[0], "parameters", [c.parameters for c in learners]),
        (panels[1], "milliseconds to adapt to a task and predict its queries, one core", [1000 * c.seconds for c in learners]),
    ):
        for i, (cost, value) in enumerate(zip(learners, values, strict=True)):
            panel.errorbar(value, cost.score, cost.half, marker=MARKS.get(cost.role, "o"), color=f"C{i % 10}", capsize=3, markersize=8, label=cost.role)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(axis)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    heading(figure, title)
    return figure
