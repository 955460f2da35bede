"""Ratings without values: what a user touched is worth 1, and items that they never touched, drawn beside it, 0."""

import numpy as np

from components.draws import bits, key_of
from components.inputs import require


def untouched(touched: np.ndarray, items: int, each: int, seed: int, user: str) -> np.ndarray:
    """Return `each` of `items` items for every one of a user's touched items [N]: of those that they never touched, uniformly, none twice [N, each].

    A pure function of (seed, user, position): the user's untouched items stand in an order drawn by counters. Raises InputError where they do not suffice.
    """
    left = np.ones(items, dtype=bool)
    left[touched] = False
    free = np.flatnonzero(left)
    need = len(touched) * each
    shown = f"{each} untouched items for each of the {len(touched)} that {f'user {user}' if user else 'the user'} touched need {need} of them"
    require(need <= len(free), f"{shown}, but only {len(free)} of {items} items are left. Lower domain.source.negatives.")
    place = bits(key_of("untouched", seed, user), free.astype(np.uint64))
    first = np.sort(np.argpartition(place, need)[:need]) if need < len(free) else np.arange(need)  # to sort a large catalogue takes long
    return free[first[np.argsort(place[first], kind="stable")]].reshape(-1, each)


def with_untouched(touched: np.ndarray, items: int, each: int, seed: int, user: str) -> tuple[np.ndarray, np.ndarray]:
    """Return items and values [N * (1 + each)]: every touched item (1), and right after it the untouched ones drawn for it (0)."""
    rows = np.concatenate([touched[:, None], untouched(touched, items, each, seed, user)], 1)
    values = np.zeros(rows.shape)
    values[:, 0] = 1
    return rows.reshape(-1), values.reshape(-1)


def beside_untouched(rows: np.ndarray, users: np.ndarray, items: int, each: int, seed: int) -> np.ndarray:
    """Return rows (user, item, value) [N * (1 + each), 3] of rows [N, 3] that stand user by user, `users` their names."""
    parts = []
    for own in np.split(rows, np.flatnonzero(np.diff(rows[:, 0])) + 1):
        found, values = with_untouched(own[:, 1].astype(np.int64), items, each, seed, str(users[int(own[0, 0])]))
        parts.append(np.stack([np.full(len(found), own[0, 0]), found, values], 1))
    return np.concatenate(parts)


def first_touches(rows: np.ndarray) -> np.ndarray:
    """Return the numbers, ascending, of the rows (user, item, ...) in which a user touches an item for the first time."""
    found: np.ndarray = np.sort(np.unique(rows[:, :2], axis=0, return_index=True)[1])
    return found
