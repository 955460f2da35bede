"""The pool: every item of a domain in a few packed files, classes with their group and split, and the options that made it.

data/<domain>/inputs.npy       [N, ...] items, those of one class side by side
data/<domain>/targets.npy      [N] each item's value, where tasks have values to predict
data/<domain>/originals.npy    [N, ...] items as they were before they were brought to the working size, where a domain keeps them
data/<domain>/items.parquet    item -> class index, note (the style of a glyph)
data/<domain>/classes.parquet  class -> name, group, split, first item, count
data/<domain>/pool.json        domain, kind of input, digest of the options that made it
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts import InputError, SplitsSection


@dataclass(frozen=True)
class PoolClass:
    """One class before it is stored: `name` is unique, `group` is the script or alphabet it belongs to."""

    name: str
    group: str
    count: int


class Reading(Protocol):
    """How rows become inputs, measured on training rows alone."""

    def fitted(self, rows: np.ndarray) -> "Reading":
        """Return this reading with what it measures on the rows [N, ...] of training classes."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the inputs [N, D] of rows [N, ...]."""

    def kept(self) -> dict[str, Any]:
        """Return what a model keeps to read rows that come later, as plain data; empty for nothing."""


@dataclass(frozen=True)
class Source:
    """What a domain builds: `inputs` [N, ...] in class order, one note an item, and `targets` [N] where items have values.

    Where inputs depend on what training items are like, they are rows that `reading` turns into inputs. `ordered`: a class's items have an
    order, such as time: the first of them are what a task knows, later ones what it asks for.
    """

    classes: list[PoolClass]
    inputs: np.ndarray
    item_notes: list[str]
    targets: np.ndarray | None = None
    originals: np.ndarray | None = None
    reading: Reading | None = None
    ordered: bool = False


@dataclass(frozen=True)
class Pool:
    """A pool on disk, opened without copying: `inputs` is a read-only memory map.

    `columns`: how rows of a user's table become inputs, where that is what the pool was made of.
    """

    path: Path
    domain: str
    source_digest: str
    inputs: np.ndarray
    classes: pa.Table
    targets: np.ndarray | None = None
    columns: dict[str, Any] | None = None
    ordered: bool = False

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

    def split(self, name: str) -> np.ndarray:
        """Return the class indices of a split (int64, ascending)."""
        return np.flatnonzero(np.array(self.classes["split"].to_pylist()) == name)

    def items(self, classes: np.ndarray) -> np.ndarray:
        """Return the item indices of the given classes, class by class."""
        return np.concatenate([np.arange(self.first[c], self.first[c] + self.counts[c]) for c in classes])


def write_pool(source: Source, splits: SplitsSection, domain: str, source_digest: str, folder: Path) -> None:
    """Write a pool into an empty folder. Raises InputError where a split names a group that the source lacks."""
    groups = {c.group for c in source.classes}
    for split in ("val", "gate", "test"):
        missing = sorted(set(getattr(splits, split)) - groups)
        if missing:
            raise InputError(f"domain.splits.{split} names {', '.join(missing)}, but the source has {', '.join(sorted(groups))}. Use those names.")
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.array([c.count for c in source.classes], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    classes = pa.table(
        {
            "name": [c.name for c in source.classes],
            "group": [c.group for c in source.classes],
            "split": [splits.split_of(c.group, c.name) for c in source.classes],
            "first": first,
            "count": counts,
        }
    )
    items = pa.table({"class": pa.array(np.repeat(np.arange(len(counts), dtype=np.int32), counts)), "note": pa.array(source.item_notes).dictionary_encode()})
    inputs, reading = source.inputs, source.reading
    if reading is not None:
        trains = np.array([splits.split_of(c.group, c.name) == "train" for c in source.classes])
        reading = reading.fitted(inputs[np.repeat(trains, counts)])
        inputs = reading.read(inputs)
    np.save(folder / "inputs.npy", inputs)
    for name, values in (("targets", source.targets), ("originals", source.originals)):
        if values is not None:
            np.save(folder / f"{name}.npy", values)
    pq.write_table(classes, folder / "classes.parquet")
    pq.write_table(items, folder / "items.parquet")
    about = {"domain": domain, "source": source_digest, "items": int(counts.sum()), "classes": len(counts)}
    about |= {"columns": kept} if reading is not None and (kept := reading.kept()) else {}
    about |= {"ordered": True} if source.ordered else {}
    (folder / "pool.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


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
    return Pool(folder, about["domain"], about["source"], inputs, classes, targets, about.get("columns"), about.get("ordered", False))
