"""Evaluation: every learner on the same fixed tasks, in every setting; differences, reliability diagrams, operations and times."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.answers import Scores, paired, pooled, score
from components.domains.pool import Pool
from components.learners.learner import Learner
from components.tasksets import batch
from components.validation import Validation

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
