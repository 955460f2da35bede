"""Drift: a learner on tasks of the newest data, against what it scored on the same tasks when it was promoted."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.answers import Scores, interval, score, together
from components.contracts import Within
from components.domains.pool import open_pool
from components.domains.seen import view
from components.evaluation import class_ids, task_classes
from components.inputs import require, way_shot
from components.learners import store
from components.tasksets import TaskSpec, write_tasksets
from components.validation import Validation


def compare(learner: str, role: str, past: str, pool: str, query: int, within: Within, seed: int) -> dict[str, float]:
    """Return the paired difference now - then of the learner's score on the gate split, with its 95 % interval.

    `past` is the file `scores-gate.parquet` of the evaluation that promoted it, where it is called `role`. Tasks are drawn from the pool as
    they were then (task i is a function of seed and i) and paired where they ask for the same classes; items may be others. Settings are
    pooled. Raises InputError where the pool gives no such tasks, or where the file is of a version that did not keep the classes.
    """
    model, spec, about = store.load(learner)
    (opened, reason), then = view(open_pool(pool), learner, spec, about, spec["objective"]), pq.read_table(past)
    require(opened is not None, f"{reason}. Retrain: what the data are made of has changed since.")
    assert opened is not None
    require("classes" in then.column_names, "the champion's scores must tell the classes of tasks, got a file without. Retrain, or evaluate it anew.")
    then = then.filter(pc.equal(then["role"], role))
    settings = then["setting"].unique().to_pylist()
    tables = []
    for setting in settings:
        way, shot = way_shot(setting)
        count = then.filter(pc.equal(then["setting"], setting)).num_rows
        tables.append(TaskSpec(f"gate-{setting}", "gate", way, shot, query, within, count))
    gaps, now, before = [], [], []
    with tempfile.TemporaryDirectory() as work:
        write_tasksets(tables, opened, seed, Path(work))
        for setting in settings:
            validation = Validation(opened, work, f"gate-{setting}")
            found, own = score(model, validation), then.filter(pc.equal(then["setting"], setting))
            old, new = own["score"].to_numpy(), next(iter(found.scores.values()))
            same = own["classes"].to_numpy() == task_classes(opened, validation.table.classes)
            shares, classes = _shares(found, own, class_ids(opened)) if "shares" in own.column_names else (None, None)
            gaps.append(((new - old)[same], found.group[same], None if shares is None else shares[same], None if classes is None else classes[same]))
            now.append(new)
            before.append(old)
    name = model.objective.score_name
    gap, groups, weights = together(gaps)
    told = {"tasks": float(sum(map(len, now))), "paired": float(round(weights.sum())), f"now/{name}": float(np.concatenate(now).mean())}
    told[f"promoted/{name}"] = float(np.concatenate(before).mean())
    if len(gap):
        told[f"difference/{name}"], told[f"difference/{name}_ci95"] = interval(gap, groups, weights)
    return told


def _shares(found: Scores, then: pa.Table, ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the difference of every class's share in a task [N, way], and which class it is; None where tasks keep to a group."""
    if found.shares is None or found.classes is None or then["shares"].null_count:
        return None, None
    past, members = (np.array(then[name].to_pylist()) for name in ("shares", "members"))
    own = ids[found.classes]
    order, before = np.argsort(own, 1), np.argsort(members, 1)  # the same classes may stand in another order
    return np.take_along_axis(found.shares, order, 1) - np.take_along_axis(past, before, 1), np.take_along_axis(own, order, 1)
