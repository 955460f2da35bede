"""What items are like: described by what training users said of them, and by what is told of them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.domains.columns import Columns
from components.domains.pool import KEPT
from components.inputs import require
from components.plain import to_plain

SHRINK = 5.0  # ratings' worth of doubt in an item's or a user's mean
MEAN, COUNT = 0, 1  # columns of an item's vector: its mean, shrunk, and a fifth of log(1 + count)
FOLDS = 5


@dataclass(frozen=True)
class Catalogue:
    """What is known of each item: rows (user, item, value) become vectors of the item alone.

    A training user's own ratings must not be in what describes the items to them, or training tasks are easier than any new user's
    (measured: squared error 0.64 on training users and 1.06 on validation users; in folds 0.77 and 1.04). So training users lie in folds,
    and each fold reads vectors that the others' ratings made, turned towards those of all.
    """

    factors: int
    co_factors: int
    users: int
    sides: np.ndarray  # [items, S]
    items: list[str] = dataclasses.field(default_factory=list)
    titles: list[str] = dataclasses.field(default_factory=list)
    scale: dict[str, Any] = dataclasses.field(default_factory=dict)  # columns of a file of ratings, and least, middle and greatest value
    about: Columns | None = None  # how numbers that describe a user are read, and those of all users [users, U]
    people: np.ndarray | None = None
    touches: bool = False  # values are 1 of what a user touched, and 0 of what was drawn beside it
    vectors: np.ndarray | None = None  # [1 + FOLDS, items, D] once fitted: of all training users, then without each fold
    fold: np.ndarray | None = None  # [users]: 0 for all others, fold + 1 for training users

    def fitted(self, rows: np.ndarray) -> "Catalogue":
        """Describe every item by the ratings in `rows` [N, 3] of training users. Values are rounded, so that machines agree on them."""
        trained = np.unique(rows[:, 0].astype(np.int64))
        asked = "domain.source needs two users that train, since what describes an item to one is what others said of it"
        require(len(trained) >= 2, f"{asked}, got {len(trained)}. Add users, or lower min_ratings.")
        fold = np.zeros(self.users, dtype=np.int64)
        fold[trained] = 1 + np.arange(len(trained)) % FOLDS
        own = fold[rows[:, 0].astype(np.int64)]
        described = [self._describe(rows)]
        for left_out in range(1, FOLDS + 1):
            described.append(self._describe(rows[own != left_out], described[0]))
        about = self.about.fitted(self.people[trained]) if self.about and self.people is not None else None
        return dataclasses.replace(self, vectors=np.round(np.stack(described), 3), fold=fold, about=about)

    def _describe(self, rows: np.ndarray, towards: np.ndarray | None = None) -> np.ndarray:
        """Return every item's vector [items, D] from ratings [N, 3]; its factors are turned towards those of other vectors.

        `factors` are of how users rate, of what is left once users and items have their means; `co_factors` of who rates what: singular vectors of
        the users' and items' graph, whose edges weigh less the more their ends have (Dhillon 2001, KDD, sec. 4; SHRINK keeps rare items small).
        """
        user, item, value = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]
        middle, items = value.mean(), len(self.sides)

        def means(places: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
            return np.bincount(places, left, count) / (np.bincount(places, minlength=count) + SHRINK)

        of_item = means(item, value - middle, items)
        left = value - middle - of_item[item]
        left -= means(user, left, self.users)[user]
        met = value > 0 if self.touches else np.ones(len(value), dtype=bool)
        count, active = np.bincount(item[met], minlength=items), np.bincount(user[met], minlength=self.users)
        edges = 1 / np.sqrt(active[user[met]] * (count[item[met]] + SHRINK))
        how = self._factors(left, user, item, self.factors) / np.sqrt(len(value) / items)
        who = self._factors(edges, user[met], item[met], self.co_factors) * np.sqrt(items) / 4
        if towards is not None:
            first = towards.shape[1] - self.factors - self.co_factors
            how, who = _turned(how, towards[:, first : first + self.factors]), _turned(who, towards[:, first + self.factors :])
        return np.concatenate([of_item[:, None], np.log1p(count)[:, None] / 5, self.sides, how, who], 1)

    def _factors(self, value: np.ndarray, user: np.ndarray, item: np.ndarray, size: int) -> np.ndarray:
        """Return the items' side [items, size] of the greatest singular vectors of values [N] of users and items, in units of their singular values."""
        from scipy.sparse import csr_array
        from scipy.sparse.linalg import svds

        if not size:
            return np.zeros((len(self.sides), 0))
        table = csr_array((value, (user, item)), shape=(self.users, len(self.sides)))
        _, sizes, directions = svds(table, k=size, v0=np.ones(min(table.shape)), solver="arpack")
        found: np.ndarray = directions.T * sizes
        found *= np.sign(found[np.abs(found).argmax(0), np.arange(size)])
        return found

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return each row's item vector, and beside it what is known of the user, [N, D] float32."""
        assert self.vectors is not None and self.fold is not None
        user, item = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
        found: np.ndarray = self.vectors.astype(np.float32)[self.fold[user], item]
        return found if self.about is None or self.people is None else np.concatenate([found, self.about.read(self.people)[user]], 1)

    def keep(self, folder: Path) -> dict[str, Any]:
        assert self.vectors is not None
        vectors = self.vectors[0].astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        pq.write_table(pa.table({"item": self.items, "title": self.titles, "vector": column}), folder / KEPT, compression="zstd")
        return {"ratings": self.scale | ({"about": to_plain(self.about)} if self.about else {})}


def _turned(factors: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Return factors [N, K] turned and mirrored so as to lie nearest to others (Schoenemann 1966, Psychometrika 31(1))."""
    from scipy.linalg import orthogonal_procrustes

    found: np.ndarray = factors @ orthogonal_procrustes(factors, towards)[0] if factors.shape[1] else factors
    return found
