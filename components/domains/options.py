"""The options of each domain: typed, validated, standard library only. Values live in conf/domain/."""

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, get_args

from components.inputs import positive, require


@dataclass
class GlyphsOptions:
    """Rendering of the `glyphs` pool. Any change is a new data version."""

    size: int
    items_per_class: int
    min_styles: int
    render_seed: int
    mesh: int
    thickness_percent: int
    scale_percent: int
    shear_percent: int
    shift_tenths: int
    elastic_tenths: int
    fonts: list[str]
    leave_out: list[str]

    def __post_init__(self) -> None:
        require(self.size >= 1 and 84 % self.size == 0, f"domain.source.size must divide 84 (the drawing canvas), got {self.size}. Use 28, 42 or 21.")
        require(self.mesh >= 1 and 84 % self.mesh == 0, f"domain.source.mesh must divide 84, got {self.mesh}. Use 1, 2, 3 or 4.")
        positive(**{"domain.source.items_per_class": self.items_per_class, "domain.source.min_styles": self.min_styles})
        require(len(self.fonts) >= self.min_styles, f"domain.source.fonts needs min_styles={self.min_styles} fonts, got {len(self.fonts)}.")


@dataclass
class SinusoidOptions:
    """`functions` sine waves, each seen at `points` places."""

    functions: int
    points: int
    seed: int

    def __post_init__(self) -> None:
        positive(**{"domain.source.functions": self.functions, "domain.source.points": self.points})


@dataclass
class OmniglotOptions:
    """Working `size` of a drawing; `evaluation` adds the evaluation archive; `alphabets` keeps those alone (all where empty)."""

    size: int
    evaluation: bool
    alphabets: list[str]

    def __post_init__(self) -> None:
        require(14 <= self.size <= 105, f"domain.source.size must lie in [14, 105], got {self.size}. Use 28, 35 or 105.")


class OwnFiles:
    """Options of a domain that is made of the user's own files, which the option `own` names."""

    own: ClassVar[str]
    needed: ClassVar[bool] = True  # without them there is nothing else that the domain could be made of
    younger: ClassVar[tuple[str, ...]] = ()  # options that came later: where they are 0, the data are the version that they were without them

    reading: ClassVar[int] = 2  # another number whenever the same files become another pool

    @property
    def given(self) -> bool:
        return self.needed or getattr(self, self.own) is not None

    @property
    def read(self) -> int | None:
        """Return the number of the way in which the data are read, None for the first way."""
        return self.reading if self.given else None

    @property
    def place(self) -> Path:
        """Return where they lie. Raises InputError where nothing does."""
        asked, kind = getattr(self, self.own), "folder" if self.own == "root" else "file"
        require(asked is not None, f"domain.source.{self.own} must be a {kind} of your own, got none. Set domain.source.{self.own}=<{kind}>.")
        path = Path(asked)
        found = path.is_dir() if kind == "folder" else path.is_file()
        require(found, f"domain.source.{self.own} must be a {kind}, got {path}, which is none. Check the path.")
        return path


@dataclass
class ImageFolderOptions(OwnFiles):
    """Pictures in `root`/<class>/* or `root`/<group>/<class>/*, brought to [size, size], grey or in `colour`.

    What cannot be used (files that are no pictures, links that lead out of the root, classes of fewer than `min_items` pictures) is
    refused, or skipped and counted, as `problems` says.
    """

    own: ClassVar[str] = "root"
    root: str | None
    size: int
    colour: bool
    min_items: int
    problems: Literal["refuse", "skip"]

    def __post_init__(self) -> None:
        require(14 <= self.size <= 224, f"domain.source.size must lie in [14, 224], got {self.size}. Use 28, 35, 64 or 84.")
        positive(**{"domain.source.min_items": self.min_items})


@dataclass
class TableOptions(OwnFiles):
    """Rows of a CSV or Parquet `file`: numbers in the columns `features` (all numeric ones where empty), a class in column `label`.

    Column `group`, where there is one, says which group a class is of. Missing numbers are refused, their rows dropped, or filled with the
    column's mean over training rows; `standardise` gives every column mean 0 and deviation 1 over training rows. Classes of fewer than
    `min_items` rows are left out and counted.
    """

    own: ClassVar[str] = "file"
    file: str | None
    label: str
    group: str | None
    features: list[str]
    missing: Literal["refuse", "drop", "mean"]
    standardise: bool
    min_items: int

    def __post_init__(self) -> None:
        positive(**{"domain.source.min_items": self.min_items})
        require(self.missing != "mean" or self.standardise, "domain.source.missing=mean fills with 0 once columns are standardised. Set standardise=true.")


RELEASES = ("ml-latest-small", "ml-100k", "ml-1m")


@dataclass
class RatingsOptions(OwnFiles):
    """Ratings of items by users: a MovieLens `release`, or a CSV or Parquet `file` with the columns `user`, `item`, `rating` and `time`.

    Users with fewer than `min_ratings` are left out. An item is described by how training users rate it (`factors` numbers) and by who rates it
    (`co_factors`), beside its mean, its count, and genres and year where the release tells them, or what the columns `describes` of the file say of
    it: numbers, and texts whose parts stand between bars, as in Drama|War. Where `rating` is null, a row says no more than
    that the user touched the item, and after each stand `negatives` items that they had not touched by then, drawn from `seed`.

    `about`: columns of the file with numbers that describe the user, the newest of each counts; releases tell theirs by themselves.
    `scale`: the least and the greatest rating that the file may hold; where it is empty, those that it does hold.

    `new_items`: the share of items that no training user is known by. `cells`: how many ratings of known items, and of new ones, users are
    asked for in the cells of a cold start (cells.py); 0 makes none.
    """

    own: ClassVar[str] = "file"
    needed: ClassVar[bool] = False
    younger: ClassVar[tuple[str, ...]] = ("about", "new_items", "cells", "scale", "describes")
    reading: ClassVar[int] = 3
    release: str
    file: str | None
    user: str
    item: str
    rating: str | None
    time: str
    about: list[str]
    describes: list[str]
    scale: list[float]
    negatives: int
    seed: int
    min_ratings: int
    factors: int
    co_factors: int
    new_items: float
    cells: int

    @property
    def read(self) -> int | None:
        return self.reading

    def __post_init__(self) -> None:
        require(0 <= self.new_items < 1, f"domain.source.new_items must lie in [0, 1), got {self.new_items}. Use 0.2, or 0 for none.")
        require(self.cells >= 0, f"domain.source.cells must be at least 0, got {self.cells}. Use 15, or 0 for none.")
        some = self.new_items > 0 or not self.cells
        require(some, f"domain.source.cells={self.cells} ask for new items, got domain.source.new_items=0. Set domain.source.new_items=0.2.")
        require(self.release in RELEASES, f"domain.source.release must be one of {', '.join(RELEASES)}, got {self.release!r}. Choose one of them.")
        pair = len(self.scale) == 2 and self.scale[0] < self.scale[1] and self.rating is not None and self.file is not None
        told = f"domain.source.scale must be the least and the greatest rating of your own file, got {self.scale}. Use [1,5], say, or [] for none."
        require(not self.scale or pair, told)
        for name in ("about", "describes"):
            told = f"domain.source.{name} names columns of your own file, got {', '.join(getattr(self, name))} without one. Set domain.source.file."
            require(not getattr(self, name) or self.file is not None, told)
            told = f"domain.source.{name} must name each column once, got {', '.join(getattr(self, name))}. Leave the others out."
            require(len(set(getattr(self, name))) == len(getattr(self, name)), told)
            both = [column for column in getattr(self, name) if column in (self.user, self.item, self.rating, self.time)]
            require(not both, f"domain.source.{name} must name columns that are not user, item, rating or time, got {', '.join(both)}. Leave them out.")
        positive(**{"domain.source.min_ratings": self.min_ratings, "domain.source.negatives": self.negatives})
        for name in ("factors", "co_factors"):
            require(getattr(self, name) >= 0, f"domain.source.{name} must be at least 0, got {getattr(self, name)}. Use 16, or 0 for none.")


@dataclass
class ControlOptions:
    """`environments` of a kind, drawn by `seed`, each played at most `episodes` times."""

    environment: Literal["navigation", "cartpole", "pendulum", "driving"]
    environments: int
    episodes: int
    seed: int

    def __post_init__(self) -> None:
        known = get_args(type(self).__annotations__["environment"])
        require(self.environment in known, f"domain.source.environment must be one of {', '.join(known)}, got {self.environment!r}. Choose one of them.")
        there = self.environment != "driving" or find_spec("highway_env") is not None
        require(there, "domain.source.environment=driving needs highway-env, got an environment without it. Use python -m pip install 'fewloop[driving]'.")
        positive(**{"domain.source.environments": self.environments, "domain.source.episodes": self.episodes})


def content(place: Path) -> str:
    """Return a digest of a file, or of every file under a folder by its path in it, hidden ones and those in hidden folders aside.

    The same files anywhere are the same data.
    """
    found = hashlib.sha256()
    for file in (
        [place]
        if place.is_file()
        else sorted(p for p in place.rglob("[!.]*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(place).parts))
    ):
        found.update(b"" if file == place else os.fsencode(file.relative_to(place).as_posix()))
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


OPTIONS: dict[str, type] = {
    "control": ControlOptions,
    "glyphs": GlyphsOptions,
    "image_folder": ImageFolderOptions,
    **{name: RatingsOptions for name in ("ratings", "clicks")},
    "sinusoid": SinusoidOptions,
    "table": TableOptions,
    **{name: OmniglotOptions for name in ("omniglot", "omniglot-small1", "omniglot-small2", "omniglot-across")},
}
