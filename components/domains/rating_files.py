"""Ratings as they are told: by MovieLens' archives, or by a file of the user's own; who rated what, and what is known of items and users."""

import csv
import dataclasses
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from components.domains.archives import DAMAGED, read_member
from components.domains.columns import is_numeric, names_in, newest, numbers, read_table
from components.domains.options import RatingsOptions
from components.inputs import InputError, require
from components.manifest import file_digest
from components.notices import tell
from components.plain import describe, one_line

# (ratings, users) of the published releases; of ml-latest-small those of 2016 and of 2018. Altered copies circulate.
PUBLISHED = {"ml-latest-small": {(100_004, 671), (100_836, 610)}, "ml-100k": {(100_000, 943)}, "ml-1m": {(1_000_209, 6_040)}}
# Of those that were at hand, by their counts: sha256 over the rows (user, film, stars, time) as float64, sorted by user and film.
DIGESTS = {(100_004, 671): "383bc32cf8b858ae8d25bbe233b51f0ff39b2ac5a6ff4f59280b45a0ba37a33a"}
# Of the others, sha256 of the archives as GroupLens packed them (tensorflow/datasets, url_checksums/movielens.txt).
ARCHIVES = {
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
}


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
    """Read a release's archive; where nothing tells whether its ratings are the published ones, say so.

    Raises InputError where it is damaged, or holds other numbers of ratings and users than any published one, or as many others.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(n).name: n for n in archive.namelist()}
            found = {kind: read_member(archive, names[name]) for kind, name in _FILES[release].items()}
        rows = _numbers(found["ratings"].replace(b"::", b",").replace(b"\t", b","), skip=int(release == "ml-latest-small"))
        films = dict(_movies(found["movies"], release))
        sides = _sides(films)
        about, people = _people(found["users"], release) if "users" in found else ([], {})
    except DAMAGED as error:  # Arrow's and csv's errors among them
        raise InputError(f"{path} must be MovieLens' {release}.zip, got one that cannot be read: {one_line(error)}. Remove it and fetch it again.") from error
    counted = (len(rows), len(np.unique(rows[:, 0])))
    told = " or ".join(f"{ratings:,} ratings of {users:,} users" for ratings, users in sorted(PUBLISHED[release]))
    require(counted in PUBLISHED[release], f"{path} must hold {told}, got {counted[0]:,} of {counted[1]:,} (an altered copy). Remove it and fetch it again.")
    wanted = DIGESTS.get(counted)
    same = wanted is None or content_digest(rows) == wanted
    require(same, f"{path} must hold the ratings of {release}, got the same number of others (an altered copy). Remove it and fetch it again.")
    if wanted is None and file_digest(path) != ARCHIVES[release]:
        unknown = f"{path} is not the archive that was published: its ratings and users are as many as {release} has, and no more is known of them"
        tell(unknown)
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
    describes = [column for name in options.describes for column in _columns(table, name)]
    needed = [options.user, options.item, *numeric, *options.about, *describes]
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
    sides = _described(table.take(order), describes, item[order].tolist(), path)
    return Told(user, item, np.ones(len(user)) if options.rating is None else found[0], found[-1], sides, about=options.about, people=people)


def _columns(table: pa.Table, name: str) -> list[str]:
    """Return the columns of a name: itself, or those that a column of lists of numbers was read as."""
    spread = [column for column in table.column_names if re.fullmatch(re.escape(name) + r"_\d+", column)]
    return spread if spread and name not in table.column_names else [name]


PARTS = 100  # of the texts of one column


def _described(table: pa.Table, names: list[str], items: list[str], path: Path) -> dict[str, list[float]]:
    """Return what columns tell of each item, the newest row of it that does: numbers of mean 0 and deviation 1, 0 where none does; of texts, one a part."""
    distinct, columns = list(dict.fromkeys(items)), []
    for name in names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_boolean(column.type) or pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        if is_numeric(column.type):
            told = newest(items, numbers(pa.table({name: column}), [name], path))
            own = np.array([told[item] for item in distinct])
            own = np.nan_to_num((own - np.nanmean(own)) / (np.nanstd(own) or 1.0)) if np.isfinite(own).any() else np.zeros_like(own)
        else:
            said = _parts(column, items, f"{path} must hold numbers or texts in column {name}, got {column.type}")
            parts = sorted(set().union(*said.values()))
            asked = f"{path} must say of items one of {PARTS} things at most in column {name}, got {len(parts)}"
            require(len(parts) <= PARTS, f"{asked}. Leave it out of domain.source.describes, or group them.")
            own = np.array([[float(part in said.get(item, ())) for part in parts] for item in distinct])
        if not (own != own[:1]).any():
            tell(f"{path}: column {name} says the same of all items, and is left out")
            continue
        columns.append(own.reshape(len(distinct), -1))
    return dict(zip(distinct, np.concatenate(columns, 1).tolist(), strict=True)) if columns else {}


def _parts(column: pa.ChunkedArray, items: list[str], asked: str) -> dict[str, set[str]]:
    """Return what texts, or lists of texts, say of each item in the newest row that says anything. Raises InputError where they are neither."""
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    texts = pa.types.is_string, pa.types.is_large_string, pa.types.is_null
    fine = any(is_text(kind.value_type if listed else kind) for is_text in texts)
    require(fine, f"{asked}. Leave it out of domain.source.describes, or turn it into one of them.")
    found: dict[str, set[str]] = {}
    for item, value in zip(items, column.to_pylist(), strict=True):
        parts = {part.strip() for part in (value if listed else value.split("|")) if part} - {""} if value else set()
        found |= {item: parts} if parts else {}
    return found
