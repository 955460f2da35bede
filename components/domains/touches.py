"""Ratings without values: what a user touched is worth 1, and items that they had not touched by then, drawn beside it, 0."""

from itertools import islice

import numpy as np

from components.draws import bits, key_of
from components.inputs import require


def untouched(touched: np.ndarray, items: int, each: int, seed: int, user: str) -> np.ndarray:
    """Return `each` of `items` items for every one of a user's touched items [N], in their order: uniformly, none twice [N, each].

    They are ones that the user had not touched by then. What is touched later is not left out: nobody knows of it when a model is asked, and examples
    without it would tell of it. So what stands beside the first N is a function of these, the seed and the user. All items stand in an order drawn by
    counters. Raises InputError where they do not suffice.
    """
    need = len(touched) * (1 + each)
    shown = f"{each} untouched items beside each of the {len(touched)} that {f'user {user}' if user else 'the user'} touched need {need} items"
    require(need <= items, f"{shown}, but there are {items}. Lower domain.source.negatives.")
    place = bits(key_of("untouched", seed, user), np.arange(items, dtype=np.uint64))
    first = np.sort(np.argpartition(place, need)[:need]) if need < items else np.arange(items)  # to sort a large catalogue takes long
    drawn = iter(first[np.argsort(place[first], kind="stable")].tolist())
    when = {item: i for i, item in enumerate(touched.tolist())}
    found = [list(islice((item for item in drawn if when.get(item, need) > i), each)) for i in range(len(touched))]
    return np.array(found, dtype=np.int64).reshape(-1, each)


def with_untouched(touched: np.ndarray, new: np.ndarray, each: int, seed: int, user: str) -> tuple[np.ndarray, np.ndarray]:
    """Return items and values [N * (1 + each)]: every touched item (1), and right after it the untouched ones drawn for it (0).

    Beside a new item stand new ones, beside a known item known ones (`new` [I]): that one is new must not tell which of them was touched.
    """
    rows = np.empty((len(touched), 1 + each), dtype=np.int64)
    for kind in np.unique(new[touched]):
        there, mine = np.flatnonzero(new == kind), new[touched] == kind
        own = np.searchsorted(there, touched[mine])
        rows[mine] = there[np.concatenate([own[:, None], untouched(own, len(there), each, seed, user)], 1)]
    values = np.zeros(rows.shape)
    values[:, 0] = 1
    return rows.reshape(-1), values.reshape(-1)


def beside_untouched(rows: np.ndarray, users: np.ndarray, new: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Return rows (user, item, value) [N * (1 + each), 3] of rows [N, 3] that stand user by user, `users` their names."""
    parts = []
    for own in np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1):
        found, values = with_untouched(own[:, 1].astype(np.int64), new, each, seed, str(users[int(own[0, 0])]))
        parts.append(np.stack([np.full(len(found), own[0, 0]), found, values], 1))
    return np.concatenate(parts)


def first_touches(rows: np.ndarray) -> np.ndarray:
    """Return the numbers, ascending, of the rows (user, item, ...) in which a user touches an item for the first time."""
    found: np.ndarray = np.sort(np.unique(rows[:, :2], axis=0, return_index=True)[1])
    return found
