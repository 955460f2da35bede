"""Evaluation: every learner on the same fixed tasks; means with intervals, paired differences, calibration, times."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from components.domains.pool import Pool
from components.learners.learner import Learner
from components.tasksets import batch
from components.validation import Validation, encode_items

BINS = 15  # of the reliability diagram


@dataclass(frozen=True)
class Scores:
    """One learner on one table: score of each task [N], group of each task [N], and the counts of the reliability diagram.

    `name` says what the score is.
    """

    score: np.ndarray
    group: np.ndarray
    bins: np.ndarray  # [BINS, 3]: queries, sum of confidences, sum of hits; all zero for values
    name: str = "accuracy"

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3); None for values."""
        if not self.bins.any():
            return None
        count, confidence, hits = self.bins.T
        return float(np.abs(confidence - hits).sum() / count.sum())


@torch.no_grad()
def score(learner: Learner, validation: Validation, tasks: int | None = None, size: int = 20) -> Scores:
    """Adapt to and predict every task of a table (the first `tasks` of it)."""
    learner.eval()
    features = encode_items(learner, validation.items)
    table = validation.compact if tasks is None else validation.compact.head(tasks)
    objective, found, bins = learner.objective, [], np.zeros((BINS, 3))
    for start in range(0, len(table), size):
        task = batch(table, np.arange(start, min(start + size, len(table))), features, validation.targets)
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        if objective.name != "cross_entropy":
            found.append(objective.score(outputs.double(), task.query.y).numpy())
            continue
        confidence, choice = outputs.softmax(-1).max(-1)
        hit = (choice == task.query.y).double()
        found.append(hit.mean(1).numpy())
        slot = (confidence.double() * BINS).long().clamp(0, BINS - 1).flatten().numpy()
        for column, weight in enumerate((None, confidence.double().flatten().numpy(), hit.flatten().numpy())):
            bins[:, column] += np.bincount(slot, weights=weight, minlength=BINS)
    return Scores(np.concatenate(found), table.group, bins, objective.score_name)


def interval(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the mean over tasks and the half-width of its 95 % interval.

    Two-stage bootstrap: groups are resampled, then tasks within each, because tasks from seven scripts are not a thousand independent
    facts (Davison and Hinkley 1997, sec. 3.8, strategy 2). With one group, or none (-1), only tasks are resampled.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    members = [values[groups == g] for g in np.unique(groups)]
    sums, counts = np.zeros(resamples), np.zeros(resamples)
    chosen = generator.integers(len(members), size=(resamples, len(members)))
    for index, own in enumerate(members):
        times = (chosen == index).sum(1)
        for repeat in range(1, int(times.max()) + 1):
            rows = np.flatnonzero(times >= repeat)
            draws = own[generator.integers(len(own), size=(len(rows), len(own)))]
            sums[rows] += draws.sum(1)
            counts[rows] += len(own)
    low, high = np.percentile(sums / counts, [2.5, 97.5])
    return float(values.mean()), float(high - low) / 2


def paired(a: Scores, b: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return a - b task by task, on the tasks that both have, and the tasks' groups."""
    n = min(len(a.score), len(b.score))
    return a.score[:n] - b.score[:n], a.group[:n]


def cost(learner: Learner, validation: Validation, tasks: int = 15) -> dict[str, float]:
    """Return what one task costs from raw inputs on one core: median seconds to adapt and to predict, and floating-point operations of both."""
    adapt, predict, threads = [], [], torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        for row in range(min(tasks, len(validation.compact))):
            task = batch(validation.compact, np.array([row]), validation.items, validation.targets)
            begin = time.perf_counter()
            adapted = learner.adapt(task.support)
            middle = time.perf_counter()
            learner.predict(adapted, task.query.x)
            predict.append(time.perf_counter() - middle)
            adapt.append(middle - begin)
        with FlopCounterMode(display=False) as counter:
            learner.predict(learner.adapt(task.support), task.query.x)
    torch.set_num_threads(threads)
    return {"adapt/seconds": statistics.median(adapt), "predict/seconds": statistics.median(predict), "flops": float(counter.get_total_flops())}


def evaluate(
    learners: Mapping[str, Learner],
    limits: Mapping[str, int],
    pairs: Mapping[str, tuple[str, str]],
    settings: list[str],
    split: str,
    pool: Pool,
    tasksets: str,
    resamples: int,
    seed: int,
    out: Path,
) -> dict[str, float]:
    """Score every learner in every setting of a split, write `scores-<split>.parquet`, and return the metrics by their full names.

    `limits` cuts the number of tasks of slow roles; `pairs` names the differences to report, each setting by itself and all settings
    together. Every role sees the same tasks. The file holds a row a task: of every role its score, of every pair its difference.
    """
    metrics: dict[str, float] = {}
    gaps: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    columns: dict[str, list[object]] = {name: [] for name in ("setting", "role", "task", "group", "score")}

    def keep(setting: str, role: str, values: np.ndarray, groups: np.ndarray) -> None:
        count = len(values)
        for name, own in zip(columns, ([setting] * count, [role] * count, range(count), groups.tolist(), values.tolist()), strict=True):
            columns[name] += own

    for setting in settings:
        validation = Validation(pool, tasksets, f"{split}-{setting}")
        found = {role: score(learner, validation, limits.get(role)) for role, learner in learners.items()}
        for role, scores in found.items():
            mean, half = interval(scores.score, scores.group, resamples, seed)
            where = f"{split}/{setting}/{role}"
            metrics |= {f"{where}/{scores.name}": mean, f"{where}/{scores.name}_ci95": half, f"{where}/tasks": len(scores.score)}
            if scores.ece is not None:
                metrics[f"{where}/ece"] = scores.ece
            if setting == settings[0] and split == "test":
                metrics |= {f"{role}/{name}": value for name, value in cost(learners[role], validation).items()}
            keep(setting, role, scores.score, scores.group)
        for label, (a, b) in pairs.items():
            if a in found and b in found:
                gap = paired(found[a], found[b])
                gaps.setdefault(label, []).append(gap)
                keep(setting, label, *gap)
                mean, half = interval(*gap, resamples, seed)
                metrics |= {f"{split}/{setting}/{label}/{found[a].name}": mean, f"{split}/{setting}/{label}/{found[a].name}_ci95": half}
        if validation.targets is None:
            metrics[f"{split}/{setting}/chance/accuracy"] = 1 / validation.table.way
    name = next(iter(learners.values())).objective.score_name
    for label, parts in gaps.items():
        mean, half = interval(np.concatenate([v for v, _ in parts]), np.concatenate([g for _, g in parts]), resamples, seed)
        metrics |= {f"{split}/{label}/{name}": mean, f"{split}/{label}/{name}_ci95": half}
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out / f"scores-{split}.parquet")
    return metrics
