"""Figures of what an evaluation measured: task by task, setting by setting, and how far its probabilities can be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.figures import MARKS, heading


@dataclass(frozen=True)
class TaskScores:
    """The scores of one split's tasks: `of[setting][role]` [N], as stored; tasks of a setting are the same ones for every role."""

    of: dict[str, dict[str, np.ndarray]]

    @classmethod
    def read(cls, folder: Path, split: str) -> "TaskScores":
        table = pq.read_table(folder / f"scores-{split}.parquet", columns=["setting", "role", "score"])
        setting, role, score = (np.asarray(table[name].to_pylist()) for name in ("setting", "role", "score"))
        found: dict[str, dict[str, np.ndarray]] = {}
        for one in dict.fromkeys(setting.tolist()):
            own = setting == one
            found[one] = {name: score[own & (role == name)].astype(np.float64) for name in dict.fromkeys(role[own].tolist())}
        return cls(found)


@dataclass(frozen=True)
class Bins:
    """The reliability diagram of one learner in one setting: queries, mean confidence and share of hits in each bin that has any."""

    queries: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def read_bins(folder: Path, split: str, roles: Sequence[str]) -> dict[str, dict[str, Bins]]:
    """Return bins by setting and role; none where an evaluation has no probabilities."""
    file = folder / f"calibration-{split}.parquet"
    if not file.exists():
        return {}
    rows = [row for row in pq.read_table(file).to_pylist() if row["role"] in roles and row["queries"] > 0]
    found: dict[str, dict[str, Bins]] = {}
    for setting, role in dict.fromkeys((row["setting"], row["role"]) for row in rows):
        own = [row for row in rows if (row["setting"], row["role"]) == (setting, role)]
        queries, confidence, hits = (np.array([row[name] for row in own], dtype=np.float64) for name in ("queries", "confidence", "hits"))
        found.setdefault(setting, {})[role] = Bins(queries, confidence / queries, hits / queries)
    return found


def _blank(panels: int, title: str, height: float = 4.4, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.0, 4.6 * panels), height), layout="constrained")
    FigureCanvasAgg(figure)
    heading(figure, title)
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=sharey)[0])


def distribution(scores: TaskScores, roles: Sequence[str], title: str, axis: str, factor: float) -> Figure:
    """Draw how the tasks' scores spread: boxes from quartile to quartile, whiskers at the 5th and 95th percentile, a dot at the mean."""
    figure, panels = _blank(len(scores.of), title, 1.6 + 0.42 * len(roles), sharey=True)
    for panel, (setting, by_role) in zip(panels, scores.of.items(), strict=True):
        there = [role for role in roles if role in by_role]
        values = [factor * by_role[role] for role in there]
        panel.boxplot(values, orientation="horizontal", whis=(5, 95), showfliers=False, showmeans=True, widths=0.6, manage_ticks=False)
        panel.set_title(setting)
        panel.set_xlabel(axis)
        panel.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(1, len(there) + 1), there)  # of all, which share it
    panels[0].set_ylim(len(there) + 0.6, 0.4)
    return figure


def by_setting(metrics: Mapping[str, float], settings: Sequence[str], roles: Sequence[str], score: str, title: str, axis: str, factor: float) -> Figure:
    """Draw each learner's score over the settings, side by side with its 95 % interval: what more ways or shots change."""
    figure, (panel,) = _blank(1, title)
    figure.set_size_inches(max(7.0, 2.2 * len(settings) + 3.5), 4.8)
    width = 0.8 / len(roles)
    for i, role in enumerate(roles):
        where = [f"test/{setting}/{role}/{score}" for setting in settings]
        at = np.arange(len(settings)) - 0.4 + width * (i + 0.5)
        mean, half = ([factor * metrics[f"{name}{end}"] for name in where] for end in ("", "_ci95"))
        known = bool(np.isfinite(half).all())  # of one task there is no interval: a mark without one would look exact
        label, filled = (role, "full") if known else (f"{role}, no interval", "none")
        marker = MARKS.get(role, "o")
        panel.errorbar(at, mean, half if known else None, linestyle="none", marker=marker, fillstyle=filled, capsize=3, markersize=7, label=label)
    panel.set_xticks(range(len(settings)), settings)
    panel.set_ylabel(axis)
    panel.grid(alpha=0.3, axis="y")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def versus(scores: TaskScores, ours: str, other: str, title: str, axis: str, factor: float, sign: int) -> Figure:
    """Draw two learners' scores of the same tasks against each other: above the line ours is higher. Dots are as large as there are tasks."""
    figure, panels = _blank(len(scores.of), title, 4.9)
    for panel, (setting, by_role) in zip(panels, scores.of.items(), strict=True):
        count = min(len(by_role[ours]), len(by_role[other]))
        a, b = (factor * by_role[name][:count] for name in (ours, other))
        points, times = np.unique(np.stack([b, a], 1).round(6), axis=0, return_counts=True)
        panel.scatter(points[:, 0], points[:, 1], s=24 * times, alpha=0.4, linewidths=0)
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        margin = 0.05 * (high - low) or 1.0
        ends = (low - margin, high + margin)
        panel.plot(ends, ends, color="0.4", linewidth=1)
        panel.set_xlim(*ends)
        panel.set_ylim(*ends)
        better, worse = int((sign * (a - b) > 0).sum()), int((sign * (a - b) < 0).sum())
        panel.set_title(f"{setting}: {ours} better in {better}, worse in {worse} of {count} tasks", fontsize=10)
        panel.set_xlabel(f"{other}, {axis}")
        panel.set_ylabel(f"{ours}, {axis}")
        panel.set_aspect("equal")
        panel.grid(alpha=0.3)
    return figure


def reliability(bins: Mapping[str, Mapping[str, Bins]], title: str) -> Figure:
    """Draw how often a learner is right against how sure it is: on the line its probabilities mean what they say. Dots grow with the queries."""
    figure, panels = _blank(len(bins), title, 4.9)
    for panel, (setting, by_role) in zip(panels, bins.items(), strict=True):
        for i, (role, own) in enumerate(by_role.items()):
            panel.plot(100 * own.confidence, 100 * own.accuracy, color=f"C{i}", linewidth=1, alpha=0.7)
            panel.scatter(100 * own.confidence, 100 * own.accuracy, s=6 + 160 * own.queries / own.queries.sum(), color=f"C{i}", label=role)
        panel.plot([0, 100], [0, 100], color="0.4", linewidth=1)
        panel.set_title(setting)
        panel.set_xlabel("confidence, %")
        panel.set_ylabel("right, %")
        panel.set_xlim(0, 101)
        panel.set_ylim(0, 101)
        panel.set_aspect("equal")
        panel.grid(alpha=0.3)
    panels[-1].legend(loc="lower right", frameon=False)
    return figure


def weights(names: Sequence[str], shares: Sequence[float], title: str) -> Figure:
    """Draw how much each member of a fused learner counts."""
    figure, (panel,) = _blank(1, title, 1.4 + 0.45 * len(names))
    bars = panel.barh(range(len(names)), [100 * share for share in shares], height=0.6)
    panel.bar_label(bars, fmt="%.0f %%", padding=3)
    panel.set_yticks(range(len(names)), list(names))
    panel.invert_yaxis()
    panel.set_xlabel("weight, %")
    panel.set_xlim(0, 100 * max(shares) * 1.15)
    return figure


def learning(histories: Mapping[str, Sequence[tuple[int, float]]], title: str, axis: str, factor: float) -> Figure:
    """Draw each fit's score on validation tasks, (step, score) an epoch: has it been trained to its end?"""
    figure, (panel,) = _blank(1, title)
    figure.set_size_inches(9, 4.8)
    for role, history in histories.items():
        steps, scores = zip(*history, strict=True)
        panel.plot(steps, [factor * score for score in scores], marker=MARKS.get(role, "o"), markersize=5, label=role)
    panel.set_xlabel("step")
    panel.set_ylabel(f"validation {axis}")
    panel.grid(alpha=0.3)
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def inner_steps(found: Mapping[str, Sequence[tuple[int, float, float]]], title: str, axis: str, factor: float) -> Figure:
    """Draw the score after so many inner steps with its 95 % interval, a setting a line: how far does adaptation go, and is it done?"""
    figure, (panel,) = _blank(1, title)
    for setting, points in found.items():
        steps, mean, half = (np.array(column) for column in zip(*points, strict=True))
        panel.errorbar(steps, factor * mean, factor * half, marker="o", capsize=3, label=setting)
    panel.set_xlabel("inner steps")
    panel.set_ylabel(axis)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure
