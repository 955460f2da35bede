"""Ratings: each user is a class, what they rated are its items in the order of time, a task asks for the later ones from the first.

An item is described by what training users said of it: its mean, shrunk towards that of all, its count, factors of what is left once users' and
items' means are taken off (Koren, Bell, Volinsky 2009, Computer 42(8)), and of who said it; and by genres and year where the release tells them,
or by columns of the user's own file. Beside an item stands what is told of the user: age, gender and occupation, or columns of the file again.
Where ratings have no values, touches.py draws what was not touched beside what was.
"""

from typing import Any

import numpy as np

from components.domains.archives import locate
from components.domains.catalogue import COUNT, Catalogue
from components.domains.cells import housed, new_ones
from components.domains.columns import Columns, coded
from components.domains.options import RatingsOptions
from components.domains.pool import PoolClass, Source
from components.domains.rating_files import read_movielens, read_own
from components.domains.touches import beside_untouched, first_touches
from components.inputs import require
from components.notices import tell
from components.plain import describe

URL = "https://files.grouplens.org/datasets/movielens/{}.zip"


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
            tell(f"{len(rows) - len(newest):,} ratings left out: the same user rated the same item again later")
        rows = rows[newest]
    counts = np.bincount(rows[:, 0].astype(np.int64), minlength=len(users))
    enough = counts >= options.min_ratings
    if not enough.all():
        few = f"{int((~enough).sum()):,} of {len(users):,} users left out, who have fewer than min_ratings={options.min_ratings}"
        tell(few)
    new, beside = new_ones(items.tolist(), options.new_items), 0 if options.rating else options.negatives
    if options.rating is None:
        left = np.zeros(len(users), dtype=bool)
        for kind in (new, ~new):
            of_kind = np.bincount(rows[kind[rows[:, 1].astype(np.int64)], 0].astype(np.int64), minlength=len(users))
            left |= enough & (of_kind * (1 + options.negatives) > kind.sum())
        enough &= ~left
        if left.any():
            told_of = f"{int(left.sum())} users left out, who touched so many of the {len(items)} items that too few are left to draw beside them"
            tell(told_of)
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
    scale |= {"new_items": options.new_items} if options.new_items and not options.rating else {}
    if options.new_items:
        numbers, classes = housed(rows, users, new, options.cells, options.min_ratings, beside)
        rows = rows[numbers]
        unknown = "" if width else ", and nothing describes them: neither genres and years nor columns of domain.source.describes"
        tell(f"{int(new.sum()):,} of {len(items):,} items are new to who trains{unknown}")
    titles = [told.titles.get(name, name) for name in items]
    about = Columns(told.about, "", [], [], True) if told.about else None
    people = np.array([told.people.get(name, [np.nan] * len(told.about)) for name in users]) if told.about else None
    reading = Catalogue(options.factors, options.co_factors, len(users), sides, items.tolist(), titles, scale, about, people, options.rating is None)
    names = items[rows[:, 1].astype(np.int64)].tolist()  # each name stands in memory once
    return Source(classes, rows, names, (rows[:, 2] - middle).astype(np.float32), reading=reading, ordered=True, popularity=COUNT)
