"""A task as people look at it: its examples beside what is asked for."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.domains.pool import Pool
from components.figures import heading
from components.tasksets import TaskTable

MOST = 8  # classes, and pictures of a class, that still can be told apart
MANY = 24  # rows of values that can be read


@dataclass(frozen=True)
class Confusion:
    """A class taken for another: how often, of how many queries with both to choose from; and items: one mistaken, one known of each."""

    truth: str
    taken: str
    times: int
    asked: int
    mistaken: int
    of_truth: int
    of_taken: int


@dataclass(frozen=True)
class Map:
    """Where the items of one task lie on two principal axes [N, 2], and the share of the spread that these two hold."""

    place: np.ndarray
    share: float


@dataclass(frozen=True)
class Valued:
    """One task of values: what each item is called, its value, and for those asked for what a learner says."""

    known: list[tuple[str, float]]
    asked: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Episodes:
    """Episodes of one environment at one moment of learning: observations [E, H, O], rewards [E, H], and which steps count [E, H]."""

    observation: np.ndarray
    reward: np.ndarray
    running: np.ndarray


def sheet(pool: Pool, items: np.ndarray) -> np.ndarray:
    """Return pictures [R, C] of items side by side, dark on light where they have no colours, each in a thin frame.

    One image a panel: a panel a picture takes matplotlib twenty times as long.
    """
    pictures = np.asarray(pool.inputs[items.ravel()])
    pictures = 255 - pictures if pictures.ndim == 3 else pictures
    rim = max(1, pictures.shape[1] // 28)
    framed = np.pad(pictures, [(0, 0), (rim, rim), (rim, rim), (0, 0)][: pictures.ndim], constant_values=176)
    rows, columns, high, wide = *items.shape, *framed.shape[1:3]
    return framed.reshape(rows, columns, high, wide, -1).swapaxes(1, 2).reshape(rows * high, columns * wide, *framed.shape[3:])


def _show(panel: Axes, pool: Pool, items: np.ndarray, rows: Sequence[str] = ()) -> None:
    """Show a sheet of pictures, as wide as high each, with names of its rows."""
    panel.imshow(sheet(pool, items), cmap="gray", vmin=0, vmax=255, extent=(0, items.shape[1], items.shape[0], 0))
    panel.set_xticks([])
    panel.set_yticks(np.arange(len(rows)) + 0.5, [textwrap.fill(name, 20, max_lines=3, placeholder=" …") for name in rows], fontsize=9)
    panel.tick_params(length=0)


def sample_task(pool: Pool, table: TaskTable, title: str, index: int = 0) -> Figure:
    """Draw one task of pictures, a class a row: the support, a gap, the query; of many classes or pictures the first `MOST`."""
    way = min(table.way, MOST)
    support, query = (part[index][:way, :MOST] for part in (table.support, table.query))
    columns = support.shape[1] + query.shape[1]
    figure = Figure(figsize=(3.0 + 0.8 * columns, 0.9 + 0.8 * way), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[support.shape[1], query.shape[1]])
    _show(left, pool, support, [str(pool.classes["name"][int(c)].as_py()) for c in table.classes[index][:way]])
    _show(right, pool, query)
    left.set_title("support", loc="left", fontsize=10)
    right.set_title("query", loc="left", fontsize=10)
    more = table.way - way
    heading(figure, title + (f"; {more} more classes" if more else ""))
    return figure


def confusions(pool: Pool, found: Sequence[Confusion], title: str) -> Figure:
    """Draw each pair of classes that is confused, a row a pair: a query that was mistaken, a known example of its class, one of the class it was taken for."""
    figure = Figure(figsize=(8.5, 0.9 + 1.0 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    _show(panel, pool, np.array([(one.mistaken, one.of_truth, one.of_taken) for one in found]))
    panel.set_xticks([0.5, 1.5, 2.5], ["asked", "its class", "taken for"], fontsize=10)
    panel.xaxis.tick_top()
    panel.set_anchor("W")
    for row, one in enumerate(found):
        told = textwrap.fill(f"{one.truth} taken for {one.taken}", 46, max_lines=3, placeholder=" …")
        panel.text(3.15, row + 0.5, f"{told}\n{one.times} of {one.asked} queries with both to choose from", va="center", fontsize=9)
    heading(figure, title)
    return figure


def maps(found: Mapping[str, Map], names: Sequence[str], labels: np.ndarray, known: np.ndarray, title: str) -> Figure:
    """Draw one task's items on the two principal axes of each map, a colour a class; what was known is large."""
    figure = Figure(figsize=(4.2 * len(found) + 2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, one) in zip(panels, found.items(), strict=True):
        for label, told in enumerate(names):
            for own, size, marker in ((~known, 22, "o"), (known, 130, "*")):
                place = one.place[own & (labels == label)]
                shown = textwrap.shorten(told, 24, placeholder="…") if marker == "*" else None
                panel.scatter(place[:, 0], place[:, 1], s=size, marker=marker, color=f"C{label % 10}", edgecolors="black", linewidths=0.4, label=shown)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel(f"two axes with {100 * one.share:.0f} % of the spread", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="known")
    heading(figure, title)
    return figure


def valued(one: Valued, title: str, axis: str) -> Figure:
    """Draw one task of values: what was known on the left; on the right what was asked for, the highest prediction first, beside the truth."""
    known, asked = one.known[:MANY], sorted(one.asked, key=lambda row: -row[2])[:MANY]
    figure = Figure(figsize=(12, 1.6 + 0.26 * max(len(known), len(asked))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([value for _, value in known], range(len(known)), "o", color="black")
    right.plot([value for _, value, _ in asked], range(len(asked)), "o", color="0.6", label="truth")
    right.plot([said for *_, said in asked], range(len(asked)), "x", color="C3", label="said")
    for panel, rows, name in ((left, known, "known"), (right, asked, "asked for")):
        panel.set_yticks(range(len(rows)), [textwrap.shorten(row[0] or "-", 40, placeholder=" …") for row in rows], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(name, fontsize=10)
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=8)
    heading(figure, title)
    return figure


def episodes(rounds: Sequence[Episodes], goal: np.ndarray | None, title: str) -> Figure:
    """Draw a policy in one environment, a panel before anything was played and after each round: paths where there is a goal, else the sum of rewards."""
    figure = Figure(figsize=(3.6 * len(rounds), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rounds), squeeze=False, sharex=True, sharey=True)[0]
    for number, (panel, one) in enumerate(zip(panels, rounds, strict=True)):
        sums = np.cumsum(one.reward * one.running, 1)
        for episode in range(len(sums)):
            steps = int(one.running[episode].sum())
            x, y = one.observation[episode, :steps, :2].T if goal is not None else (np.arange(1, steps + 1), sums[episode, :steps])
            panel.plot(x, y, linewidth=1, alpha=0.8)
        if goal is not None:
            panel.plot(*goal, "*", color="black", markersize=14)
            panel.set_aspect("equal")
        else:
            panel.set_xlabel("step")
        played = "before any episode" if number == 0 else f"after {number} round{'s' * (number > 1)}"
        panel.set_title(f"{played}: return {sums[:, -1].mean():.1f}", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("" if goal is not None else "sum of rewards")
    heading(figure, title)
    return figure
