"""The catalogue of items as a model keeps it, and what users have rated or touched, read by it."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.domains.cells import new_ones
from components.domains.columns import Columns, coded, is_numeric, names_in, newest, numbers, read_table, rows_by
from components.domains.pool import KEPT
from components.domains.touches import with_untouched
from components.inputs import InputError, require
from components.plain import describe


@dataclass(frozen=True)
class Known:
    """What one user has rated: the items' numbers in the catalogue, and the values as the file tells them (1 where it tells none).

    `about`: what is known of the user [U], as the model reads it.
    """

    user: str
    items: np.ndarray
    values: np.ndarray
    about: np.ndarray


@dataclass(frozen=True)
class Shelf:
    """The catalogue as a model keeps it: every item's name, title and vector [items, D], and the scale of ratings."""

    names: list[str]
    titles: list[str]
    vectors: np.ndarray
    scale: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, scale: dict[str, Any]) -> "Shelf":
        """Read it beside a model. Raises InputError where it is missing or damaged."""
        try:
            table = pq.read_table(folder / KEPT).combine_chunks()
            vectors = table["vector"].chunk(0).flatten().to_numpy().reshape(len(table), -1)
            return cls(table["item"].to_pylist(), table["title"].to_pylist(), vectors, scale)
        except (OSError, KeyError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(f"{folder} must hold the catalogue {KEPT} of its items, got: {error}. Train or register the model again.") from error

    @cached_property
    def place(self) -> dict[str, int]:
        """The number of every item, by its name."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def new(self) -> np.ndarray:
        """Which items [I] nobody who trained was known by, where some were kept apart."""
        return new_ones(self.names, self.scale.get("new_items", 0.0))

    def numbers(self, asked: list[str], where: Path) -> tuple[np.ndarray, list[str]]:
        """Return the numbers of items by name, and the names that the catalogue lacks. Raises InputError where it lacks all of them."""
        found, lacks = [self.place[name] for name in asked if name in self.place], sorted({name for name in asked if name not in self.place})
        require(len(found) > 0, f"{where} must name items that the model knows, such as {describe(self.names[:3])}, got none. Use their names.")
        return np.array(found), lacks

    def read(self, path: Path) -> tuple[list[Known], list[str], list[str]]:
        """Read a file of ratings, of one user or of several; return each user's, the items that the catalogue lacks, and users of whom it lacks every item.

        Rows are taken in the order of the column of times, where there is one; what no column tells of a user is the mean. Raises InputError
        where a column is missing, a rating lies outside of the scale, a user rated an item twice and no time tells which is newer, or touched too many,
        or no item is known.
        """
        scale = self.scale
        table = read_table(path, [scale["user"], scale["item"]])
        needed = [scale["item"], *([scale["rating"]] if scale["rating"] else [])]
        lacks = [name for name in needed if name not in table.column_names]
        require(not lacks, f"{path} must have the columns {' and '.join(needed)}, but lacks {describe(lacks)}. Add them.")
        timed = scale["time"] in table.column_names
        if timed:
            kind = table.schema.field(scale["time"]).type
            require(is_numeric(kind), f"{path} must hold numbers in column {scale['time']}, got {kind}. Turn times into seconds, or leave the column out.")
            table = table.sort_by(scale["time"])
        values = self._values(table, path) if scale["rating"] else np.ones(len(table))
        several = scale["user"] in table.column_names
        users = names_in(table, scale["user"], path) if several else [""] * len(table)
        items = names_in(table, scale["item"], path)
        require(len(items) > 0, f"{path} must hold ratings, got none. Add some.")
        _, missing = self.numbers(items, path)
        people = self._people(table, users, path)
        rated = np.array([self.place.get(name, -1) for name in items])
        known, strangers = [], []
        for own in sorted(rows_by(coded(users)[1]), key=lambda rows: int(rows[0])):  # users in the order of their first rows
            user, names = users[own[0]], [items[row] for row in own]
            if scale["rating"] and not timed and len(set(names)) < len(names):
                twice = sorted(name for name, count in Counter(names).items() if count > 1)
                raise InputError(f"{path} must hold one rating an item, got several of {describe(twice)}{f' by {user}' if user else ''}. Keep the newest.")
            own = own[rated[own] >= 0]
            own = own[::-1] if scale["rating"] else own  # of ratings the newest counts, of touches the first
            own = np.sort(own[np.unique(rated[own], return_index=True)[1]])
            if not len(own):
                strangers.append(user)
                continue
            known.append(Known(user, rated[own], values[own], people[user]))
            self.examples(known[-1])  # raises before any work
        return known, missing, strangers

    def _values(self, table: pa.Table, path: Path) -> np.ndarray:
        name, least, greatest = (self.scale[key] for key in ("rating", "least", "greatest"))
        kind = table.schema.field(name).type
        require(is_numeric(kind), f"{path} must hold numbers in column {name}, got {kind}. Give each rating as a number.")
        values: np.ndarray = table.column(name).to_numpy().astype(np.float64)
        odd = values[~((values >= least) & (values <= greatest))]
        require(not len(odd), f"{path} must hold ratings from {least:g} to {greatest:g}, got {describe([f'{v:g}' for v in odd])}.")
        return values

    def _people(self, table: pa.Table, users: list[str], path: Path) -> dict[str, np.ndarray]:
        """Return what rows in the order of time tell of each user [U], as the model reads it."""
        if "about" not in self.scale:
            return dict.fromkeys(users, np.zeros(0, dtype=np.float32))
        about = Columns(**self.scale["about"])
        rows = np.full((len(table), len(about.names)), np.nan)
        told = [i for i, name in enumerate(about.names) if name in table.column_names]
        rows[:, told] = numbers(table, [about.names[i] for i in told], path)
        told_of = newest(users, rows)
        return dict(zip(told_of, about.read(np.array([*told_of.values()])), strict=True))

    def inputs(self, items: np.ndarray, known: Known) -> np.ndarray:
        """Return the inputs [N, D] of items [N] for a user."""
        return np.concatenate([self.vectors[items], np.broadcast_to(known.about, (len(items), len(known.about)))], 1)

    def examples(self, known: Known) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs [S, D] and centred values [S] that a learner adapts to; after what was touched comes what was not, as in training."""
        items, values, scale = known.items, known.values, self.scale
        if scale["rating"] is None:
            who = f" by user {known.user}" if known.user else ""
            for kind, alike in ((~self.new, "items"), (self.new, "new items")):
                most, got = int(kind.sum()) // (1 + scale["negatives"]), int(kind[items].sum())
                told = f"the model draws {scale['negatives']} untouched ones of its {int(kind.sum())} beside each touched one"
                require(got <= most, f"touched {alike}{who} must be {most} at most, got {got}: {told}. Give the newest {most}.")
            items, values = with_untouched(items, self.new, scale["negatives"], scale["seed"], known.user)
        return self.inputs(items, known), (values - scale["middle"]).astype(np.float32)

    def told(self, values: np.ndarray) -> np.ndarray:
        """Return centred values on the scale of ratings."""
        found: np.ndarray = np.clip(values + self.scale["middle"], self.scale["least"], self.scale["greatest"])
        return found
