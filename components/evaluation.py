"""Evaluation: every learner on the same fixed tasks; means with intervals, paired differences, calibration, times."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.domains.pool import Pool
from components.learners.learner import Learner
from components.objectives import MEASURES
from components.tasksets import batch
from components.validation import Validation, encode_items

Told = Callable[[str], None]  # what is being measured now


def _distances(a: Sequence[int], b: Sequence[int], *_: object, out_shape: object = None, **__: object) -> int:
    """Return the operations of all distances between a [..., N, D] and b [..., M, D]: a difference, a square and a sum each."""
    return 3 * math.prod(a) * b[-2]


def _recurrence(x: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: object, out_shape: object = None, **__: object) -> int:
    """Return the operations of a recurrent layer in one direction: x [steps, N, D], weights [4H, D] and [4H, H]."""
    return 2 * math.prod(x[:-1]) * (math.prod(weight) + math.prod(recurrent))


# What torch's counter passes over on a processor.
UNCOUNTED = {torch.ops.aten._cdist_forward: _distances, torch.ops.aten._euclidean_dist: _distances, torch.ops.aten.mkldnn_rnn_layer: _recurrence}


def operations(work: Callable[[], object]) -> float:
    """Return the floating-point operations of products, convolutions, attention, recurrent layers and distances in `work`."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:  # attention as products, which are counted
        work()
    return float(counter.get_total_flops())


BINS = 15  # of the reliability diagram
ANSWERS = "validation.parquet"  # beside a student: what it came to on each validation task


@dataclass(frozen=True)
class Scores:
    """One learner on one table: scores of each task by name [N], group of each task [N], and the counts of the reliability diagram.

    The first score is the objective's own. Of tasks that take their classes from everywhere, `shares` [N, way] is the score of each class's queries
    (a task's is their mean) and `classes` [N, way] says which they are.
    """

    scores: dict[str, np.ndarray]
    group: np.ndarray
    bins: np.ndarray  # [BINS, 3]: queries, sum of confidences, sum of hits; all zero for values
    shares: np.ndarray | None = None
    classes: np.ndarray | None = None

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3); None for values."""
        if not self.bins.any():
            return None
        count, confidence, hits = self.bins.T
        return float(np.abs(confidence - hits).sum() / count.sum())


@torch.no_grad()
def score(learner: Learner, validation: Validation, tasks: int | None = None, size: int = 20, more: Sequence[str] = ()) -> Scores:
    """Adapt to and predict every task of a table (the first `tasks` of it); `more` names further scores of tasks that have values."""
    learner.eval()
    features = encode_items(learner, validation.items)
    table = validation.compact if tasks is None else validation.compact.head(tasks)
    objective, bins = learner.objective, np.zeros((BINS, 3))
    found: dict[str, list[np.ndarray]] = {name: [] for name in (objective.score_name, *more)}
    shares: list[np.ndarray] = []
    for start in range(0, len(table), size):
        task = batch(table, np.arange(start, min(start + size, len(table))), features, validation.targets)
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        if objective.name != "cross_entropy":
            outputs, y = outputs.double() - validation.lowest, task.query.y - validation.lowest
            for name, own in found.items():
                unit = validation.unit if name.startswith("ndcg") else 1.0
                own.append((MEASURES[name] if name in more else objective.score)(outputs / unit, y / unit).numpy())
            continue
        confidence, choice = outputs.softmax(-1).max(-1)
        hit = (choice == task.query.y).double()
        found[objective.score_name].append(hit.mean(1).numpy())
        shares.append(hit.view(len(hit), table.way, -1).mean(2).numpy())
        slot = (confidence.double() * BINS).long().clamp(0, BINS - 1).flatten().numpy()
        for column, weight in enumerate((None, confidence.double().flatten().numpy(), hit.flatten().numpy())):
            bins[:, column] += np.bincount(slot, weights=weight, minlength=BINS)
    across = bool(shares) and len(np.unique(table.group)) == 1  # tasks take their classes from everywhere, or from the one group there is
    whole = {name: np.concatenate(own) for name, own in found.items()}
    return Scores(whole, table.group, bins, *((np.concatenate(shares), table.classes) if across else ()))


def interval(values: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Return the mean over tasks and the half-width of its 95 % interval; `weights`: what share of a task each value is, where it is not one.

    Tasks from seven scripts are not a thousand independent facts: the variance is that of sums over groups, and Student's t has one degree of
    freedom less than there are groups (Cameron and Miller 2015, Journal of Human Resources 50(2), eq. 11 and sec. VI.D). A bootstrap over
    groups is too narrow where these are few: with five that differ as much as tasks do, it covers the truth in 81 of 100 cases. With one
    group, or none (-1), tasks are the groups.
    """
    from scipy.special import stdtrit

    _, own = np.unique(groups, return_inverse=True)
    count = int(own.max()) + 1
    if count == 1:
        own, count = np.arange(len(values)), len(values)
    weights = np.ones(len(values)) if weights is None else weights
    mean = float(np.average(values, weights=weights))
    sums = np.bincount(own, weights * (values - mean), count)
    error = np.sqrt(count / (count - 1) * np.square(sums).sum()) / weights.sum() if count > 1 else np.inf
    return mean, float(stdtrit(count - 1, 0.975) * error) if count > 1 else float("inf")


def facts(values: np.ndarray, groups: np.ndarray, shares: np.ndarray | None, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `interval` takes: values, what they are facts of, and their weights.

    Tasks that take their classes from everywhere, or from the only group, ask for the same few classes again and again: the facts are then the
    classes, with what every task says of them. As independent tasks, 500 of six classes that differ by three points found the truth in 25 of 100 intervals.
    """
    if shares is None or classes is None:
        return values, groups, np.ones(len(values))
    return shares.ravel(), classes.ravel(), np.full(shares.size, 1 / shares.shape[1])


Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]  # values of tasks, their groups, every class's share, and which class it is


def together(parts: Sequence[Parts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `interval` takes of several tables: where one has several groups, those are the facts of all, since its classes lie in them."""
    across = all(shares is not None for _, _, shares, _ in parts)
    own = [facts(values, groups, *((shares, classes) if across else (None, None))) for values, groups, shares, classes in parts]
    values, groups, weights = (np.concatenate(column) for column in zip(*own, strict=True))
    return values, groups, weights


def pooled(found: Sequence[Scores], name: str) -> tuple[float, float]:
    """Return the mean over the tasks of several tables and the half-width of its 95 % interval."""
    return interval(*together([(one.scores[name], one.group, one.shares, one.classes) for one in found]))


def write_answers(found: Scores, folder: Path) -> None:
    """Keep scores of validation tasks beside the learner whose they are, so that another's can be paired with them."""
    lists = {} if found.shares is None else {"share": list(found.shares), "class": list(np.asarray(found.classes))}
    pq.write_table(pa.table({"group": found.group, **found.scores, **lists}), folder / ANSWERS)


def read_answers(folder: str | Path, name: str) -> Scores:
    """Read what `write_answers` kept of score `name`."""
    table = pq.read_table(Path(folder) / ANSWERS)
    lists = [np.array(table[column].to_pylist()) for column in ("share", "class")] if "share" in table.column_names else []
    return Scores({name: table[name].to_numpy()}, table["group"].to_numpy(), np.zeros((BINS, 3)), *lists)


def paired(a: Scores, b: Scores) -> Scores:
    """Return a - b task by task, on the tasks that both have."""
    n = min(len(a.group), len(b.group))
    shares = (a.shares[:n] - b.shares[:n], a.classes[:n]) if a.shares is not None and b.shares is not None and a.classes is not None else ()
    return Scores({name: own[:n] - b.scores[name][:n] for name, own in a.scores.items()}, a.group[:n], np.zeros((BINS, 3)), *shares)


def class_ids(pool: Pool) -> np.ndarray:
    """Return a number a class [C] by its name: the same one in any version of the data."""
    return np.array([_id(str(name)) for name in pool.classes["name"].to_pylist()])


def _id(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def task_classes(pool: Pool, classes: np.ndarray) -> np.ndarray:
    """Return a number a task [N] that says which classes [N, way] it asks for, by their names: the same ones in any version of the data."""
    names = [str(name) for name in pool.classes["name"].to_pylist()]
    return np.array([_id("\0".join(sorted(names[c] for c in task))) for task in classes])


def cost(learner: Learner, validation: Validation, tasks: int) -> dict[str, float]:
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
        flops = operations(lambda: learner.predict(learner.adapt(task.support), task.query.x))
    torch.set_num_threads(threads)
    return {"adapt/seconds": statistics.median(adapt), "predict/seconds": statistics.median(predict), "flops": flops}


def evaluate(
    learners: Mapping[str, Learner],
    limits: Mapping[str, int],
    pairs: Mapping[str, tuple[str, str]],
    settings: list[str],
    split: str,
    pool: Pool,
    tasksets: str,
    out: Path,
    more: Sequence[str] = (),
    told: Told = lambda _: None,
    seen: Mapping[str, Pool] | None = None,
) -> dict[str, float]:
    """Score every learner in every setting of a split, write `scores-<split>.parquet`, and return the metrics by their full names.

    `limits` cuts the number of tasks of slow roles; `pairs` names the differences to report, each setting by itself and all settings
    together. Every role sees the same tasks; `told` hears each before it is scored. The file holds a row a task: which classes it asks
    for, of every role its scores, of every pair its differences; the objective's own score as `score`, those in `more` by their names.
    `seen`: the pool as a role sees it, where that is not as all others do. Where there are probabilities, `calibration-<split>.parquet` holds
    the bins of the reliability diagrams.
    """
    metrics: dict[str, float] = {}
    gaps: dict[str, list[Scores]] = {}
    tables = []
    sure: list[dict[str, object]] = []  # the reliability diagrams
    asked, ids = np.zeros(0, dtype=np.int64), class_ids(pool)  # the setting's tasks, by their classes

    def keep(setting: str, role: str, found: Scores) -> None:
        count = len(found.group)
        columns: dict[str, Any] = {}
        for name, values in found.scores.items():
            mean, half = pooled([found], name)
            metrics.update({f"{split}/{setting}/{role}/{name}": mean, f"{split}/{setting}/{role}/{name}_ci95": half})
            columns["score" if not columns else name] = values
        if found.shares is not None:  # arrays, for the tasks of several settings have several ways
            starts = np.arange(0, found.shares.size + 1, found.shares.shape[1])
            columns |= {name: pa.ListArray.from_arrays(starts, part.ravel()) for name, part in (("shares", found.shares), ("members", ids[found.classes]))}
        about = {"setting": [setting] * count, "role": [role] * count, "task": np.arange(count), "group": found.group, "classes": asked[:count]}
        tables.append(pa.table(about | columns))

    for setting in settings:
        validation = Validation(pool, tasksets, f"{split}-{setting}")
        own = {role: Validation(other, tasksets, f"{split}-{setting}") for role, other in (seen or {}).items()}
        asked = task_classes(pool, validation.table.classes)
        found = {}
        for role, learner in learners.items():
            told(f"{split} {setting} {role}")
            found[role] = score(learner, own.get(role, validation), limits.get(role), more=more)
        for role, scores in found.items():
            keep(setting, role, scores)
            metrics[f"{split}/{setting}/{role}/tasks"] = len(scores.group)
            if scores.ece is not None:
                metrics[f"{split}/{setting}/{role}/ece"] = scores.ece
                sure += [{"setting": setting, "role": role, "queries": n, "confidence": c, "hits": h} for n, c, h in scores.bins.tolist()]
            if split == "test":
                spent = cost(learners[role], own.get(role, validation), 3 if role in limits else 15)
                metrics[f"test/{setting}/{role}/seconds"] = spent["adapt/seconds"] + spent["predict/seconds"]
                if setting == settings[0]:  # what stands beside a learner whatever it is asked
                    metrics |= {f"{role}/{name}": value for name, value in spent.items()}
        for label, (a, b) in pairs.items():
            if a in found and b in found:
                gap = paired(found[a], found[b])
                gaps.setdefault(label, []).append(gap)
                keep(setting, label, gap)
        if validation.targets is None:
            metrics[f"{split}/{setting}/chance/accuracy"] = 1 / validation.table.way
    for label, parts in gaps.items():
        for name in parts[0].scores:
            mean, half = pooled(parts, name)
            metrics |= {f"{split}/{label}/{name}": mean, f"{split}/{label}/{name}_ci95": half}
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables, promote_options="default"), out / f"scores-{split}.parquet")
    if sure:
        pq.write_table(pa.Table.from_pylist(sure), out / f"calibration-{split}.parquet")
    return metrics
