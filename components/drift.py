"""Drift: a learner on tasks of the newest data, against what it scored on the same tasks when it was promoted."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts import Within
from components.domains.pool import open_pool
from components.domains.seen import view
from components.evaluation import interval, score, task_classes
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
    gaps, groups, now, before = [], [], [], []
    with tempfile.TemporaryDirectory() as work:
        write_tasksets(tables, opened, seed, Path(work))
        for setting in settings:
            validation = Validation(opened, work, f"gate-{setting}")
            found, own = score(model, validation), then.filter(pc.equal(then["setting"], setting))
            old, new = own["score"].to_numpy(), next(iter(found.scores.values()))
            same = own["classes"].to_numpy() == task_classes(opened, validation.table.classes)
            gaps.append((new - old)[same])
            groups.append(found.group[same])
            now.append(new)
            before.append(old)
    name = model.objective.score_name
    gap = np.concatenate(gaps)
    told = {"tasks": float(sum(map(len, now))), "paired": float(len(gap)), f"now/{name}": float(np.concatenate(now).mean())}
    told[f"promoted/{name}"] = float(np.concatenate(before).mean())
    if len(gap):
        told[f"difference/{name}"], told[f"difference/{name}_ci95"] = interval(gap, np.concatenate(groups))
    return told
