"""Task sets: seeded tables of tasks, and the batches read from them.

Task i of table t is a pure function of (seed, t, i): its random bits are a counter-based hash, so any range of tasks can be drawn by
itself, in any order, in any process. Support and query of a class come from one draw without replacement, so they cannot overlap.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.contracts import CELLS, EvaluationSection, TasksSection, Within
from components.domains.pool import Pool
from components.draws import below, bits, key_of
from components.inputs import InputError, require, way_shot
from components.tasks import Examples, TaskBatch

CHUNK = 20_000  # tasks drawn at once: intermediate arrays stay within the processor's cache and a few tens of MB
TUNING = 500  # validation tasks a setting by which linear references are tuned


@dataclass(frozen=True)
class TaskSpec:
    """What every task of a table looks like."""

    table: str
    split: str
    way: int
    shot: int
    query: int
    within: Within
    tasks: int


@dataclass(frozen=True)
class TaskTable:
    """Tasks as item indices: classes [N, way], support [N, way, shot], query [N, way, query] (int32), and group [N].

    -1 stands for across groups; where tasks of one class come from everywhere, the class is the group.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def way(self) -> int:
        return int(self.classes.shape[1])

    def head(self, tasks: int) -> "TaskTable":
        """Return the first `tasks` tasks, as views."""
        return TaskTable(self.classes[:tasks], self.support[:tasks], self.query[:tasks], self.group[:tasks])


def choose(random_bits: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """Choose k of sizes[r] things without replacement, in random order, for each row r.

    random_bits [2k, R] uint64 -> [k, R] int32. Floyd's algorithm (Bentley and Floyd 1987, CACM 30(9)) picks the set with one comparison
    against each earlier pick, whatever the size; k - 1 swaps then put it in random order.
    """
    rows = random_bits.shape[1]
    chosen = np.empty((k, rows), dtype=np.int32)
    top = sizes.astype(np.int32) - np.int32(k)
    for step in range(k):
        pick = below(random_bits[step], top + 1).astype(np.int32)
        taken = np.zeros(rows, dtype=bool)
        for earlier in range(step):
            taken |= chosen[earlier] == pick
        np.copyto(pick, top, where=taken)
        chosen[step] = pick
        top += 1
    columns = np.arange(rows)
    for step in range(k - 1, 0, -1):
        other = below(random_bits[k + step], step + 1).astype(np.intp)
        swapped = chosen[other, columns]
        chosen[other, columns] = chosen[step]
        chosen[step] = swapped
    return chosen


def check(spec: TaskSpec, pool: Pool) -> None:
    """Raise InputError where the pool cannot give such tasks."""
    classes = pool.split(spec.split)
    name = pool.source_digest[:6]
    sizes = _group_sizes(pool, classes)
    available = max(sizes.values(), default=0) if spec.within == "group" else len(classes)
    where = f"in one group of split '{spec.split}'" if spec.within == "group" else f"in split '{spec.split}'"
    of = f"domain.splits.{spec.split}, raise domain.splits.shares.{spec.split}"
    give = "add classes" if spec.split == "train" else f"name more groups in {of}, or add classes"
    more = f"Use way<={available}, {give}." if available > 1 else f"{give.capitalize()}."
    require(
        spec.way <= available,
        f"{spec.table}: way={spec.way} needs {spec.way} classes {where}, but pool {name} has {available}. "
        + (more if spec.split not in CELLS else "Lower domain.source.cells or min_ratings."),
    )
    asked, fewest = pool.asked[classes], int(pool.counts[classes].min())
    known, left = int(asked.min()), int((pool.counts[classes] - asked).min())
    require(
        not known or (spec.shot <= known and spec.query <= left),
        f"{spec.table}: shot={spec.shot} and query={spec.query} need that many items before and among those asked for, but pool {name} has {known} and {left}. "
        "Lower shot or query.",
    )
    require(
        spec.shot + spec.query <= fewest,
        f"{spec.table}: shot={spec.shot} and query={spec.query} need {spec.shot + spec.query} items a class in split '{spec.split}', "
        f"but pool {name} has {fewest}. Lower shot or query.",
    )


def draw(spec: TaskSpec, pool: Pool, seed: int, first: int = 0, count: int | None = None) -> TaskTable:
    """Draw tasks first..first+count-1 of a table. Raises InputError where way, shot or query exceed the pool."""
    check(spec, pool)
    count = spec.tasks - first if count is None else count
    need = spec.shot + spec.query
    split = pool.split(spec.split)
    members, offsets, sizes, groups = _by_group(pool, split, spec)
    classes = np.empty((count, spec.way), dtype=np.int32)
    support = np.empty((count, spec.way, spec.shot), dtype=np.int32)
    query = np.empty((count, spec.way, spec.query), dtype=np.int32)
    group = np.empty(count, dtype=np.int32)
    class_key, item_key = key_of(seed, spec.table, "classes"), key_of(seed, spec.table, "items")
    first_item, items = pool.first.astype(np.int32), pool.counts.astype(np.int32)
    before = np.maximum(pool.asked, spec.shot).astype(np.int32)
    for start in range(0, count, CHUNK):
        rows = np.arange(first + start, first + min(start + CHUNK, count), dtype=np.uint64)
        here = slice(start, start + len(rows))
        lanes = np.arange(1 + 2 * spec.way, dtype=np.uint64)[:, None]
        random = bits(class_key, rows * np.uint64(1 + 2 * spec.way) + lanes)
        home = below(random[0], len(sizes)).astype(np.intp)
        picks = members[offsets[home] + choose(random[1:], sizes[home], spec.way)].T.copy()
        classes[here] = picks
        group[here] = picks[:, 0] if spec.within == "all" and spec.way == 1 else groups[home]
        flat = picks.reshape(-1)
        cells = (rows[:, None] * np.uint64(spec.way) + np.arange(spec.way, dtype=np.uint64)).reshape(-1)
        lanes = np.arange(2 * need, dtype=np.uint64)[:, None]
        random = bits(item_key, cells * np.uint64(2 * need) + lanes)
        if pool.ordered:  # the first are known, and any of the later ones asked for
            later = choose(random, items[flat] - before[flat], spec.query) + before[flat]
            known = np.arange(spec.shot, dtype=np.int32)[:, None].repeat(len(flat), 1)
            chosen = np.concatenate([known, later])
        else:
            chosen = choose(random, items[flat], need)
        chosen += first_item[flat]
        by_class = chosen.T.reshape(len(rows), spec.way, need)
        support[here] = by_class[:, :, : spec.shot]
        query[here] = by_class[:, :, spec.shot :]
    return TaskTable(classes, support, query, group)


def _group_sizes(pool: Pool, classes: np.ndarray) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for c in classes:
        sizes[pool.groups[c]] = sizes.get(pool.groups[c], 0) + 1
    return sizes


def _by_group(pool: Pool, classes: np.ndarray, spec: TaskSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return class indices side by side by group, each group's offset and size, and its number (-1 for tasks across groups)."""
    if spec.within == "all":
        return classes.astype(np.int32), np.array([0]), np.array([len(classes)]), np.array([-1])
    number = {name: i for i, name in enumerate(sorted(set(pool.groups)))}
    found: dict[str, list[int]] = {}
    for c in classes:
        found.setdefault(pool.groups[c], []).append(c)
    usable = [name for name in sorted(found) if len(found[name]) >= spec.way]
    members, sizes = [found[name] for name in usable], np.array([len(found[name]) for name in usable])
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.concatenate(members).astype(np.int32), offsets, sizes, np.array([number[name] for name in usable])


def specs(tasks: TasksSection, evaluation: EvaluationSection, cells: Sequence[str] = ()) -> list[TaskSpec]:
    """Return the tables of a pipeline: train, val, and gate and test tasks in every evaluation setting, those of each cell besides."""
    tables = [
        TaskSpec("train", "train", tasks.way, tasks.shot, tasks.query, tasks.within, tasks.train),
        TaskSpec("val", "val", tasks.way, tasks.shot, tasks.query, tasks.within, tasks.val),
    ]
    for split, number in (("gate", evaluation.gate_tasks), *((split, evaluation.tasks) for split in ("test", *cells))):
        for setting in evaluation.settings:
            way, shot = way_shot(setting)
            tables.append(TaskSpec(f"{split}-{setting}", split, way, shot, evaluation.query, evaluation.within, number))
    return tables


def tuning_specs(evaluation: EvaluationSection) -> list[TaskSpec]:
    """Return the tables of validation tasks, one a final setting, by which the linear references of values are tuned."""
    asked = ((setting, *way_shot(setting)) for setting in evaluation.settings)
    return [TaskSpec(f"references-{s}", "val", way, shot, evaluation.query, evaluation.within, TUNING) for s, way, shot in asked]


def write_tasksets(tables: list[TaskSpec], pool: Pool, seed: int, folder: Path) -> None:
    """Write every table as Parquet with fixed-size lists, and a manifest."""
    for spec in tables:
        check(spec, pool)
    folder.mkdir(parents=True, exist_ok=True)
    for spec in tables:
        table = draw(spec, pool, seed)
        columns = {"task": pa.array(np.arange(len(table), dtype=np.int64)), "group": pa.array(table.group)}
        for name in ("classes", "support", "query"):
            rows = getattr(table, name).reshape(len(table), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        pq.write_table(pa.table(columns), folder / f"{spec.table}.parquet", compression="zstd")
    manifest = {"seed": seed, "pool": str(pool.path), "tables": {spec.table: vars(spec) for spec in tables}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def read_table(folder: str | Path, name: str) -> TaskTable:
    """Read one table; the arrays are views of Arrow's buffers. Raises InputError naming what is missing or corrupt."""
    path = Path(folder) / f"{name}.parquet"
    try:
        shape = json.loads((Path(folder) / "manifest.json").read_text())["tables"][name]
        table = pq.read_table(path).combine_chunks()
        count, way = table.num_rows, shape["way"]
        columns = {column: table[column].chunk(0).flatten().to_numpy(zero_copy_only=True).reshape(count, way, -1) for column in ("classes", "support", "query")}
        return TaskTable(columns["classes"][:, :, 0], columns["support"], columns["query"], table["group"].to_numpy())
    except (OSError, ValueError, KeyError, IndexError, pa.ArrowInvalid) as error:
        raise InputError(f"The task table {path} must be complete and readable, got: {error}. Delete its folder; the next run draws it again.") from error


def batch(table: TaskTable, rows: np.ndarray, items: torch.Tensor, targets: torch.Tensor | None = None) -> TaskBatch:
    """Gather tasks `rows` from `items` [N, ...] (inputs or features): support [T, way*shot, ...], query [T, way*query, ...].

    Labels are the places of the classes in the task, or `targets` [N] of the items where tasks have values to predict.
    """

    def examples(index: np.ndarray) -> Examples:
        tasks, way, per_class = index.shape
        flat = torch.from_numpy(index.reshape(tasks, -1).astype(np.int64))
        labels = torch.arange(way).repeat_interleave(per_class).expand(tasks, -1) if targets is None else targets[flat]
        return Examples(items[flat], labels.to(items.device), way)

    return TaskBatch(examples(table.support[rows]), examples(table.query[rows]))
