"""The pool: every item of a domain in a few packed files, classes with their group and split, and the options that made it.

data/<domain>/inputs.npy       [N, ...] items, those of one class side by side
data/<domain>/targets.npy      [N] each item's value, where tasks have values to predict
data/<domain>/originals.npy    [N, ...] items as they were before they were brought to the working size, where a domain keeps them
data/<domain>/items.parquet    item -> class index, note (the style of a glyph)
data/<domain>/classes.parquet  class -> name, group, split, first item, count; where there are cells of a cold start, the first item asked for
data/<domain>/kept.parquet     what a model keeps to read rows that come later, where that is large (of ratings, the catalogue of items)
data/<domain>/pool.json        domain, kind of input, digest of the options that made it
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts import CELLS, SplitsSection
from components.inputs import InputError, require
from components.splits import homes

KEPT = "kept.parquet"  # what a model keeps beside its weights, where that is too large for JSON


@dataclass(frozen=True)
class PoolClass:
    """One class before it is stored: `name` is unique in a split, `group` is the script or alphabet it belongs to.

    `homes`: the split that it goes to, by the one that its name falls to; it is left out where that one is not named, and goes there itself
    where none is. `asked`: how many of its items come before those that a task asks for, where that is not what follows the support.
    """

    name: str
    group: str
    count: int
    homes: Mapping[str, str] = field(default_factory=dict)
    asked: int = 0


AT_ONCE = 100_000  # rows that are made into inputs together


class Reading(Protocol):
    """How rows become inputs, measured on training rows alone."""

    def fitted(self, rows: np.ndarray) -> "Reading":
        """Return this reading with what it measures on the rows [N, ...] of training classes."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the inputs [N, D] of rows [N, ...]."""

    def keep(self, folder: Path) -> dict[str, Any]:
        """Return what a model keeps to read rows that come later, as plain data by its kind; what is large goes into KEPT in the folder."""


@dataclass(frozen=True)
class Source:
    """What a domain builds: `inputs` [N, ...] in class order, one note an item, and `targets` [N] where items have values.

    Where inputs depend on what training items are like, they are rows that `reading` turns into inputs. `ordered`: a class's items have an
    order, such as time: the first of them are what a task knows, later ones what it asks for. `popularity`: the column of the inputs that
    says how much an item is asked for, where one does. `environment`: the kind whose episodes the items are.
    """

    classes: list[PoolClass]
    inputs: np.ndarray
    item_notes: list[str]
    targets: np.ndarray | None = None
    originals: np.ndarray | None = None
    reading: Reading | None = None
    ordered: bool = False
    popularity: int | None = None
    environment: str | None = None


@dataclass(frozen=True)
class Pool:
    """A pool on disk, opened without copying: `inputs` is a read-only memory map.

    `kept`: how rows that come later become inputs, where the pool was made of such: `columns` of a table, or `ratings`.
    """

    path: Path
    domain: str
    source_digest: str
    inputs: np.ndarray
    classes: pa.Table
    targets: np.ndarray | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    ordered: bool = False
    popularity: int | None = None
    environment: str | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one input of a network: pictures [1, H, W], or [3, H, W] of stored [H, W, 3]; vectors [D]."""
        shape = self.inputs.shape[1:]
        if self.inputs.dtype != np.uint8:
            return shape
        return (3, *shape[:2]) if shape[-1] == 3 else (1, *shape)

    @cached_property
    def groups(self) -> list[str]:
        return list(self.classes["group"].to_pylist())

    @cached_property
    def first(self) -> np.ndarray:
        return np.asarray(self.classes["first"].to_numpy())

    @cached_property
    def counts(self) -> np.ndarray:
        return np.asarray(self.classes["count"].to_numpy())

    @cached_property
    def asked(self) -> np.ndarray:
        """Return for every class how many of its items a task never asks for, 0 where these are the support alone."""
        told = "asked" in self.classes.column_names
        return np.asarray(self.classes["asked"].to_numpy()) if told else np.zeros(len(self.classes), dtype=np.int64)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the splits of a cold start, where the domain made them."""
        return CELLS if "asked" in self.classes.column_names else ()

    def split(self, name: str) -> np.ndarray:
        """Return the class indices of a split (int64, ascending)."""
        return np.flatnonzero(np.array(self.classes["split"].to_pylist()) == name)

    def items(self, classes: np.ndarray) -> np.ndarray:
        """Return the item indices of the given classes, class by class."""
        return np.concatenate([np.arange(self.first[c], self.first[c] + self.counts[c]) for c in classes])


def write_pool(source: Source, splits: SplitsSection, domain: str, source_digest: str, folder: Path) -> None:
    """Write a pool into an empty folder. Raises InputError where a split names a group that the source lacks."""
    groups = {c.group for c in source.classes}
    for name in ("val", "gate", "test"):
        missing = sorted(set(getattr(splits, name)) - groups)
        if missing:
            raise InputError(f"domain.splits.{name} names {', '.join(missing)}, but the source has {', '.join(sorted(groups))}. Use those names.")
    folder.mkdir(parents=True, exist_ok=True)
    source, split = _housed(source, splits)
    counts = np.array([c.count for c in source.classes], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    classes = pa.table(
        {
            "name": [f"{c.name} {home}" if home in CELLS else c.name for c, home in zip(source.classes, split, strict=True)],
            "group": [c.group for c in source.classes],
            "split": split,
            "first": first,
            "count": counts,
        }
    )
    if any(c.asked for c in source.classes):
        classes = classes.append_column("asked", pa.array([c.asked for c in source.classes]))
    items = pa.table({"class": pa.array(np.repeat(np.arange(len(counts), dtype=np.int32), counts)), "note": pa.array(source.item_notes).dictionary_encode()})
    reading = source.reading
    if reading is not None:
        reading = reading.fitted(source.inputs[np.repeat(np.array(split) == "train", counts)])
        _save_read(folder / "inputs.npy", source.inputs, reading)
    else:
        np.save(folder / "inputs.npy", source.inputs)
    for name, values in (("targets", source.targets), ("originals", source.originals)):
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    pq.write_table(classes, folder / "classes.parquet")
    pq.write_table(items, folder / "items.parquet")
    about = {"domain": domain, "source": source_digest, "items": int(counts.sum()), "classes": len(counts)}
    about |= reading.keep(folder) if reading is not None else {}
    about |= {"ordered": True} if source.ordered else {}
    about |= {"popularity": source.popularity} if source.popularity is not None else {}
    about |= {"environment": source.environment} if source.environment is not None else {}
    (folder / "pool.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def _save_read(path: Path, rows: np.ndarray, reading: Reading) -> None:
    """Write what `reading` makes of rows as numpy's own file, some at a time: a million ratings become half a gigabyte of inputs."""
    one = reading.read(rows[:1])
    with path.open("wb") as file:
        shape = (len(rows), *one.shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(one.dtype), "fortran_order": False, "shape": shape})
        for start in range(0, len(rows), AT_ONCE):
            file.write(np.ascontiguousarray(reading.read(rows[start : start + AT_ONCE])).tobytes())


def _housed(source: Source, splits: SplitsSection) -> tuple[Source, list[str]]:
    """Return a source without the classes that are left out, and the split of each of the others."""
    found = homes(splits, [(c.group, c.name) for c in source.classes])
    split = [c.homes.get(home, "") if c.homes else home for c, home in zip(source.classes, found, strict=True)]
    if all(split):
        return source, split
    items = np.flatnonzero(np.repeat([bool(home) for home in split], [c.count for c in source.classes]))
    classes = [c for c, home in zip(source.classes, split, strict=True) if home]
    notes = [source.item_notes[i] for i in items.tolist()]
    targets, originals = (None if values is None else values[items] for values in (source.targets, source.originals))
    return replace(source, classes=classes, inputs=source.inputs[items], item_notes=notes, targets=targets, originals=originals), [s for s in split if s]


def open_pool(path: str | Path) -> Pool:
    """Open a pool. Raises InputError naming the file that is missing or unreadable."""
    folder = Path(path)
    try:
        about = json.loads((folder / "pool.json").read_text())
        inputs = np.load(folder / "inputs.npy", mmap_mode="r")
        classes = pq.read_table(folder / "classes.parquet")
        targets = np.load(folder / "targets.npy", mmap_mode="r") if (folder / "targets.npy").exists() else None
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise InputError(f"The pool in {folder} must be complete and readable, got: {error}. Delete the folder; the next run restores it.") from error
    told = {name: about[name] for name in ("ordered", "popularity", "environment") if name in about}
    kept = {name: about[name] for name in ("columns", "ratings") if name in about}
    return Pool(folder, about["domain"], about["source"], inputs, classes, targets, kept, **told)


def check_shots(pool: Pool, shot: int, query: int, more: int) -> None:
    """Raise InputError where a training class is too small for a task and the `more` examples of it that a teacher gets besides."""
    needed, least = shot + query + more, int(pool.counts[pool.split("train")].min())
    require(
        needed <= least,
        f"student.recipe.teacher_shots={more} needs {needed} examples a class, but one of the training classes has {least}. Lower it, or tasks.query.",
    )
