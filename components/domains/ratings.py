"""Ratings: each user is a class, what they rated are its items in the order of time, a task asks for the later ones from the first.

An item is described by what training users said of it: its mean, shrunk towards that of all, its count, and factors of what is left once
users' and items' means are taken off (Koren, Bell, Volinsky 2009, Computer 42(8)); and by genres and year where the release tells them.
"""

import csv
import dataclasses
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.contracts import InputError, require
from components.domains.archives import locate
from components.domains.columns import is_numeric, read_table
from components.domains.options import RatingsOptions
from components.domains.pool import PoolClass, Source
from components.plain import describe

URL = "https://files.grouplens.org/datasets/movielens/{}.zip"
# (ratings, users) of the published releases; of ml-latest-small those of 2016 and of 2018. Altered copies circulate.
PUBLISHED = {"ml-latest-small": {(100_004, 671), (100_836, 610)}, "ml-100k": {(100_000, 943)}, "ml-1m": {(1_000_209, 6_040)}}
SHRINK = 5.0  # ratings' worth of doubt in an item's or a user's mean


@dataclass(frozen=True)
class Told:
    """Ratings as they are told: parallel arrays of user, item (names), value and time; and what is known of items by name."""

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    time: np.ndarray
    sides: dict[str, list[float]]  # genres and year, in the same places for every item


def read_movielens(path: Path, release: str) -> Told:
    """Read a release's archive. Raises InputError where it is damaged, or holds other numbers of ratings and users than any published one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(n).name: n for n in archive.namelist()}
            found = {kind: archive.read(names[name]) for kind, name in _FILES[release].items()}
        rows = np.loadtxt(
            io.StringIO(found["ratings"].decode().replace("::", ",").replace("\t", ",")), delimiter=",", skiprows=int(release == "ml-latest-small")
        )
        sides = _sides(dict(_movies(found["movies"], release)))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} must be MovieLens' archive {release}.zip, got one that cannot be read: {error}. Fetch it again.") from error
    counted = (len(rows), len(np.unique(rows[:, 0])))
    told = " or ".join(f"{ratings:,} ratings of {users:,} users" for ratings, users in sorted(PUBLISHED[release]))
    require(counted in PUBLISHED[release], f"{path} must hold {told}, got {counted[0]:,} of {counted[1]:,} (an altered copy). Fetch it again.")
    users, items = (np.char.mod("%d", rows[:, i].astype(np.int64)) for i in (0, 1))
    return Told(users, items, rows[:, 2], rows[:, 3], sides)


_FILES = {
    "ml-latest-small": {"ratings": "ratings.csv", "movies": "movies.csv"},
    "ml-100k": {"ratings": "u.data", "movies": "u.item"},
    "ml-1m": {"ratings": "ratings.dat", "movies": "movies.dat"},
}


def _movies(raw: bytes, release: str) -> Iterator[tuple[str, tuple[str, set[str]]]]:
    """Yield each film's number, title and genres; of ml-100k, the genres' numbers."""
    if release == "ml-latest-small":
        for row in csv.DictReader(io.StringIO(raw.decode())):
            yield row["movieId"], (row["title"], set(row["genres"].split("|")))
    for line in raw.decode("latin-1").splitlines() if release != "ml-latest-small" else ():
        if release == "ml-1m":
            number, title, genres = line.split("::")
            yield number, (title, set(genres.split("|")))
        else:
            fields = line.split("|")
            yield fields[0], (fields[1], {str(i) for i, flag in enumerate(fields[5:]) if flag == "1"})


def _sides(films: dict[str, tuple[str, set[str]]]) -> dict[str, list[float]]:
    """Return for each film one number a genre, and its year in decades from 1980 (0 where the title tells none)."""
    genres = sorted(set().union(*(own for _, own in films.values())))
    sides = {}
    for number, (title, own) in films.items():
        year = re.search(r"\((\d{4})\)", title)
        sides[number] = [*(float(g in own) for g in genres), (int(year[1]) - 1980) / 10 if year else 0.0]
    return sides


def read_own(options: RatingsOptions) -> Told:
    """Read the user's own file. Raises InputError naming a column that is missing, or that should hold numbers and does not."""
    path, table = options.place, read_table(options.place)
    needed = (options.user, options.item, options.rating, options.time)
    lacks = [name for name in needed if name not in table.column_names]
    require(not lacks, f"{path} must have the columns {', '.join(needed)}, but lacks {describe(lacks)}. Name them by domain.source.user and so on.")
    for name in (options.rating, options.time):
        kind = table.schema.field(name).type
        require(is_numeric(kind), f"{path} must hold numbers in column {name}, got {kind}. Turn times into seconds, say.")
    user, item = (np.array([str(v) for v in table.column(name).to_pylist()]) for name in needed[:2])
    value, time = (table.column(name).to_numpy().astype(np.float64) for name in needed[2:])
    require(bool(np.isfinite(value).all() and np.isfinite(time).all()), f"{path} must hold a rating and a time in every row, got gaps. Remove those rows.")
    return Told(user, item, value, time, {})


FOLDS = 5


@dataclass(frozen=True)
class Catalogue:
    """What is known of each item: rows (user, item, value) become vectors of the item alone.

    A training user's own ratings must not be in what describes the items to them, or training tasks are easier than any new user's
    (measured: squared error 0.64 on training users and 1.06 on validation users; in folds 0.77 and 1.04). So training users lie in folds,
    and each fold reads vectors that the others' ratings made, turned towards those of all (Schoenemann 1966, Psychometrika 31(1)).
    """

    factors: int
    users: int
    sides: np.ndarray  # [items, S]
    vectors: np.ndarray | None = None  # [1 + FOLDS, items, D] once fitted: of all training users, then without each fold
    fold: np.ndarray | None = None  # [users]: 0 for all others, fold + 1 for training users

    def fitted(self, rows: np.ndarray) -> "Catalogue":
        """Describe every item by the ratings in `rows` [N, 3] of training users. Values are rounded, so that machines agree on them."""
        trained = np.unique(rows[:, 0].astype(np.int64))
        fold = np.zeros(self.users, dtype=np.int64)
        fold[trained] = 1 + np.arange(len(trained)) % FOLDS
        own = fold[rows[:, 0].astype(np.int64)]
        described = [self._describe(rows)]
        for left_out in range(1, FOLDS + 1):
            described.append(self._describe(rows[own != left_out], described[0]))
        return dataclasses.replace(self, vectors=np.round(np.stack(described), 3), fold=fold)

    def _describe(self, rows: np.ndarray, towards: np.ndarray | None = None) -> np.ndarray:
        """Return every item's vector [items, D] from ratings [N, 3]; its factors are turned towards those of other vectors."""
        from scipy.linalg import orthogonal_procrustes
        from scipy.sparse import csr_array
        from scipy.sparse.linalg import svds

        user, item, value = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2]
        middle, items = value.mean(), len(self.sides)

        def means(places: np.ndarray, left: np.ndarray, count: int) -> np.ndarray:
            return np.bincount(places, left, count) / (np.bincount(places, minlength=count) + SHRINK)

        of_item = means(item, value - middle, items)
        of_user = means(user, value - middle - of_item[item], self.users)
        parts = [of_item[:, None], np.log1p(np.bincount(item, minlength=items))[:, None] / 5, self.sides]
        if self.factors:
            left = csr_array((value - middle - of_item[item] - of_user[user], (user, item)), shape=(self.users, items))
            _, size, directions = svds(left, k=self.factors, v0=np.ones(min(left.shape)), solver="arpack")
            found = directions.T * size / np.sqrt(len(value) / items)
            found *= np.sign(found[np.abs(found).argmax(0), np.arange(self.factors)])
            parts.append(found if towards is None else found @ orthogonal_procrustes(found, towards[:, -self.factors :])[0])
        return np.concatenate(parts, 1)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return each row's item vector [N, D] float32."""
        assert self.vectors is not None and self.fold is not None
        user, item = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
        found: np.ndarray = self.vectors[self.fold[user], item].astype(np.float32)
        return found

    def kept(self) -> dict[str, Any]:
        return {}


def build(options: RatingsOptions, mirror: str | None = None) -> Source:
    """Read the ratings user by user, each user's in the order of time. Values are centred on the middle of their range."""
    if options.file is not None:
        told = read_own(options)
    else:
        told = read_movielens(locate(f"movielens/{options.release}.zip", URL.format(options.release), mirror), options.release)
    users, user = np.unique(told.user, return_inverse=True)
    items, item = np.unique(told.item, return_inverse=True)
    counts = np.bincount(user, minlength=len(users))
    enough = counts >= options.min_ratings
    require(int(enough.sum()) >= 4, f"domain.source needs four users with {options.min_ratings} ratings, got {int(enough.sum())}. Lower min_ratings.")
    order = np.lexsort((item, told.time, user))
    order = order[enough[user[order]]]
    width = len(next(iter(told.sides.values()), []))
    sides = np.array([told.sides.get(name, [0.0] * width) for name in items]).reshape(len(items), width)
    classes = [PoolClass(str(name), str(name), int(count)) for name, count, kept in zip(users, counts, enough, strict=True) if kept]
    rows = np.stack([user[order], item[order], told.value[order]], 1)
    middle = (told.value.min() + told.value.max()) / 2
    targets = (told.value[order] - middle).astype(np.float32)
    return Source(classes, rows, items[item[order]].tolist(), targets, reading=Catalogue(options.factors, len(users), sides), ordered=True)
