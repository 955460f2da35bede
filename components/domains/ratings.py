"""Ratings: each user is a class, what they rated are its items in the order of time, a task asks for the later ones from the first.

An item is described by what training users said of it: its mean, shrunk towards that of all, its count, factors of what is left once users' and
items' means are taken off (Koren, Bell, Volinsky 2009, Computer 42(8)), and of who said it; and by genres and year where the release tells them.
Beside an item stands what is told of the user: age, gender and occupation, or the columns of the user's own file.
Where ratings have no values, touches.py draws what was not touched beside what was.
"""

import csv
import dataclasses
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from components.domains.archives import DAMAGED, locate, read_member
from components.domains.cells import housed, new_ones
from components.domains.columns import Columns, coded, is_numeric, names_in, newest, numbers, read_table
from components.domains.options import RatingsOptions
from components.domains.pool import KEPT, ItemStatistics, PoolClass, Source
from components.domains.touches import beside_untouched, first_touches
from components.inputs import InputError, require
from components.plain import describe, one_line, to_plain

URL = "https://files.grouplens.org/datasets/movielens/{}.zip"
# (ratings, users) of the published releases; of ml-latest-small those of 2016 and of 2018. Altered copies circulate.
PUBLISHED = {"ml-latest-small": {(100_004, 671), (100_836, 610)}, "ml-100k": {(100_000, 943)}, "ml-1m": {(1_000_209, 6_040)}}
# Of those that were at hand, by their counts: sha256 over the rows (user, film, stars, time) as float64, sorted by user and film.
DIGESTS = {(100_004, 671): "383bc32cf8b858ae8d25bbe233b51f0ff39b2ac5a6ff4f59280b45a0ba37a33a"}
SHRINK = 5.0  # ratings' worth of doubt in an item's or a user's mean
STATISTICS = ItemStatistics(mean=0, count=1, doubt=SHRINK)  # in the vectors of a catalogue


@dataclass(frozen=True)
class Told:
    """Ratings as they are told: parallel arrays of user, item (names), value and time; and what is known of items by name."""

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    time: np.ndarray
    sides: dict[str, list[float]]  # genres and year, in the same places for every item
    titles: dict[str, str] = dataclasses.field(default_factory=dict)
    about: list[str] = dataclasses.field(default_factory=list)  # what is known of users, and of each by name, NaN where it is not told
    people: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def read_movielens(path: Path, release: str) -> Told:
    """Read a release's archive. Raises InputError where it is damaged, or holds other numbers of ratings and users than any published one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(n).name: n for n in archive.namelist()}
            found = {kind: read_member(archive, names[name]) for kind, name in _FILES[release].items()}
        rows = _numbers(found["ratings"].replace(b"::", b",").replace(b"\t", b","), skip=int(release == "ml-latest-small"))
        films = dict(_movies(found["movies"], release))
        sides = _sides(films)
        about, people = _people(found["users"], release) if "users" in found else ([], {})
    except DAMAGED as error:  # Arrow's and csv's errors among them
        raise InputError(f"{path} must be MovieLens' archive {release}.zip, got one that cannot be read: {one_line(error)}. Fetch it again.") from error
    counted = (len(rows), len(np.unique(rows[:, 0])))
    told = " or ".join(f"{ratings:,} ratings of {users:,} users" for ratings, users in sorted(PUBLISHED[release]))
    require(counted in PUBLISHED[release], f"{path} must hold {told}, got {counted[0]:,} of {counted[1]:,} (an altered copy). Fetch it again.")
    wanted = DIGESTS.get(counted)
    same = wanted is None or content_digest(rows) == wanted
    require(same, f"{path} must hold the ratings of {release}, got the same number of others (an altered copy). Fetch it again.")
    users, items = (_names(rows[:, i]) for i in (0, 1))
    return Told(users, items, rows[:, 2], rows[:, 3], sides, {number: title for number, (title, _) in films.items()}, about, people)


def content_digest(rows: np.ndarray) -> str:
    """Return a digest of ratings [N, 4] whatever their order and the archive around them: copies are packed anew, and stay the same data."""
    ordered = rows[np.lexsort((rows[:, 1], rows[:, 0]))].astype("<f8")
    return hashlib.sha256(ordered.tobytes()).hexdigest()


def _numbers(raw: bytes, skip: int) -> np.ndarray:
    """Return a table of four columns of numbers as rows [N, 4]."""
    names = ["user", "item", "rating", "time"]
    table = pyarrow.csv.read_csv(
        io.BytesIO(raw),
        pyarrow.csv.ReadOptions(column_names=names, skip_rows=skip),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64())),
    )
    return np.stack([table[name].to_numpy() for name in names], 1)


def _names(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers as strings."""
    distinct, place = np.unique(numbers.astype(np.int64), return_inverse=True)
    named: np.ndarray = np.array([str(n) for n in distinct.tolist()], dtype=object)[place]
    return named


_FILES = {
    "ml-latest-small": {"ratings": "ratings.csv", "movies": "movies.csv"},
    "ml-100k": {"ratings": "u.data", "movies": "u.item", "users": "u.user"},
    "ml-1m": {"ratings": "ratings.dat", "movies": "movies.dat", "users": "users.dat"},
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


def _people(raw: bytes, release: str) -> tuple[list[str], dict[str, list[float]]]:
    """Return what is told of users, and each one's numbers: female or not, age in years, and one number an occupation."""
    rows = [line.split("::" if release == "ml-1m" else "|") for line in raw.decode("latin-1").splitlines()]
    age, gender = (2, 1) if release == "ml-1m" else (1, 2)
    trades = sorted({row[3] for row in rows})
    people = {row[0]: [float(row[gender] == "F"), float(row[age]), *(float(row[3] == trade) for trade in trades)] for row in rows}
    return ["female", "age", *(f"occupation {trade}" for trade in trades)], people


def read_own(options: RatingsOptions) -> Told:
    """Read the user's own file. Raises InputError naming a column that is missing, or that should hold numbers and does not."""
    path = options.place
    table = read_table(path, [options.user, options.item])
    require(len(table) > 0, f"{path} must hold a row for every rating, got none. Add rows.")
    numeric = [name for name in (options.rating, options.time) if name is not None]
    needed = [options.user, options.item, *numeric, *options.about, *options.describes]
    lacks = [name for name in needed if name not in table.column_names]
    require(not lacks, f"{path} must have the columns {', '.join(needed)}, but lacks {describe(lacks)}. Name them by domain.source.user and so on.")
    for name in numeric:
        kind = table.schema.field(name).type
        require(is_numeric(kind), f"{path} must hold numbers in column {name}, got {kind}. Turn times into seconds, say.")
    user, item = (np.array(names_in(table, name, path), dtype=object) for name in needed[:2])
    found = [table.column(name).to_numpy().astype(np.float64) for name in numeric]
    whole = all(bool((np.abs(own) <= np.finfo(np.float32).max).all()) for own in found)
    require(whole, f"{path} must hold a number below 3e38 in every row of {' and '.join(numeric)}, got others or gaps. Remove those rows.")
    order = np.argsort(found[-1], kind="stable")
    people = newest(user[order].tolist(), numbers(table, options.about, path)[order]) if options.about else {}
    sides = _described(table.take(order), options.describes, item[order].tolist(), path)
    return Told(user, item, np.ones(len(user)) if options.rating is None else found[0], found[-1], sides, about=options.about, people=people)


PARTS = 100  # of the texts of one column


def _described(table: pa.Table, names: list[str], items: list[str], path: Path) -> dict[str, list[float]]:
    """Return what columns tell of each item, the newest row of it: numbers of mean 0 and deviation 1, 0 where it is not told; of texts, one number a part."""
    distinct, columns = list(dict.fromkeys(items)), []
    for name in names:
        if is_numeric(table.schema.field(name).type):
            told = newest(items, numbers(table, [name], path))
            own = np.array([told[item] for item in distinct])
            own = np.nan_to_num((own - np.nanmean(own)) / (np.nanstd(own) or 1.0)) if np.isfinite(own).any() else np.zeros_like(own)
        else:
            texts = dict(zip(items, table.column(name).cast(pa.string()).to_pylist(), strict=True))
            said = [set((texts[item] or "").split("|")) - {""} for item in distinct]
            parts = sorted(set().union(*said))
            asked = f"{path} must say of items one of {PARTS} things at most in column {name}, got {len(parts)}"
            require(len(parts) <= PARTS, f"{asked}. Leave it out of domain.source.describes, or group them.")
            own = np.array([[float(part in of) for part in parts] for of in said]).reshape(len(distinct), -1)
        if not (own != own[:1]).any():
            print(f"{path}: column {name} says the same of all items, and is left out", file=sys.stderr, flush=True)
            continue
        columns.append(own)
    return dict(zip(distinct, np.concatenate(columns, 1).tolist(), strict=True)) if columns else {}


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


def build(options: RatingsOptions, mirror: str | None = None) -> Source:
    """Read the ratings user by user, each user's in the order of time. Values are centred on the middle of their range."""
    if options.file is not None:
        told = read_own(options)
    else:
        told = read_movielens(locate(f"movielens/{options.release}.zip", URL.format(options.release), mirror), options.release)
    (users, user), (items, item) = coded(told.user), coded(told.item)
    rows = np.stack([user, item, told.value], 1)[np.lexsort((item, told.time, user))]
    if options.rating is None:
        rows = rows[first_touches(rows)]  # what a user touches again counts once
    else:  # the newest rating of an item stands: an older one would be among the examples of a task that asks for it
        newest = np.sort(len(rows) - 1 - first_touches(rows[::-1]))
        if len(newest) < len(rows):
            print(f"{len(rows) - len(newest):,} ratings left out: the same user rated the same item again later", file=sys.stderr, flush=True)
        rows = rows[newest]
    counts = np.bincount(rows[:, 0].astype(np.int64), minlength=len(users))
    enough = counts >= options.min_ratings
    if not enough.all():
        few = f"{int((~enough).sum()):,} of {len(users):,} users left out, who have fewer than min_ratings={options.min_ratings}"
        print(few, file=sys.stderr, flush=True)
    new, beside = new_ones(items.tolist(), options.new_items), 0 if options.rating else options.negatives
    if options.rating is None:
        left = np.zeros(len(users), dtype=bool)
        for kind in (new, ~new):
            of_kind = np.bincount(rows[kind[rows[:, 1].astype(np.int64)], 0].astype(np.int64), minlength=len(users))
            left |= enough & (of_kind * (1 + options.negatives) > kind.sum())
        enough &= ~left
        if left.any():
            told_of = f"{int(left.sum())} users left out, who touched so many of the {len(items)} items that too few are left to draw beside them"
            print(told_of, file=sys.stderr, flush=True)
    require(int(enough.sum()) >= 4, f"domain.source needs four users with {options.min_ratings} ratings, got {int(enough.sum())}. Lower min_ratings.")
    rows = rows[enough[rows[:, 0].astype(np.int64)]]
    least, greatest = (float(told.value.min()), float(told.value.max())) if options.rating else (0.0, 1.0)
    if options.scale:
        least, greatest = options.scale
        outside = told.value[(told.value < least) | (told.value > greatest)]
        some = describe([f"{value:g}" for value in sorted(set(outside.tolist()))])
        asked = f"{options.file} must hold ratings from {least:g} to {greatest:g}, got {len(outside)} rows with others: {some}"
        require(not len(outside), f"{asked}. Correct them, or change domain.source.scale.")
    asked = f"domain.source.{options.rating} must hold ratings that differ, got {least:g} in every row. Set domain.source.rating=null for what was touched."
    require(least < greatest, asked)
    fewer = min(len(users), len(items))
    for name, size in (("factors", options.factors), ("co_factors", options.co_factors)):
        require(size < fewer, f"domain.source.{name} must be below {fewer}, the number of users or items, got {size}. Lower it.")
    if options.rating is None:
        rows, counts = beside_untouched(rows, users, new, options.negatives, options.seed), counts * (1 + options.negatives)
    width = len(next(iter(told.sides.values()), []))
    sides = np.array([told.sides.get(name, [0.0] * width) for name in items]).reshape(len(items), width)
    classes = [PoolClass(str(name), str(name), int(count)) for name, count, kept in zip(users, counts, enough, strict=True) if kept]
    middle = (least + greatest) / 2
    scale: dict[str, Any] = {"user": options.user, "item": options.item, "rating": options.rating, "time": options.time}
    scale |= {"least": least, "middle": middle, "greatest": greatest}
    scale |= {} if options.rating else {"negatives": options.negatives, "seed": options.seed}
    if options.new_items:
        numbers, classes = housed(rows, users, new, options.cells, options.min_ratings, beside)
        rows = rows[numbers]
        unknown = "" if width else ", and nothing describes them: neither genres nor years are told"
        print(f"{int(new.sum()):,} of {len(items):,} items are new to who trains{unknown}", file=sys.stderr, flush=True)
    titles = [told.titles.get(name, name) for name in items]
    about = Columns(told.about, "", [], [], True) if told.about else None
    people = np.array([told.people.get(name, [np.nan] * len(told.about)) for name in users]) if told.about else None
    reading = Catalogue(options.factors, options.co_factors, len(users), sides, items.tolist(), titles, scale, about, people, options.rating is None)
    names = items[rows[:, 1].astype(np.int64)].tolist()  # each name stands in memory once
    return Source(classes, rows, names, (rows[:, 2] - middle).astype(np.float32), reading=reading, ordered=True, statistics=STATISTICS)
