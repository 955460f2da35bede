"""Cold start in its four cells: users that trained or new ones, asked for items that training knows or for new ones.

Lee et al. 2019, "MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation", arXiv:1908.00413, sec. 4. What a user is known
by are ratings of known items in all four.
"""

import numpy as np

from components.domains.pool import PoolClass
from components.draws import key_of
from components.inputs import require


def new_ones(names: list[str], share: float) -> np.ndarray:
    """Tell which items [I] are new: by the hash of an item's name, so that further items move none."""
    return np.array([int(key_of("new item", name)) < share * 2**64 for name in names])


def housed(rows: np.ndarray, users: np.ndarray, new: np.ndarray, each: int, least: int, beside: int = 0) -> tuple[np.ndarray, list[PoolClass]]:
    """Return the numbers of rows (user, item, ...) that stand user by user in the order of time, class by class, and the classes.

    A user who trains does so by ratings of known items alone, where there are `least`; all others keep all of theirs. With `each`, a user
    who has that many ratings of known items besides, and that many of new ones, is asked for the last `each` of one kind in a cell: those
    of known items train nothing either. After each rating stand `beside` more rows of items of its kind, which it takes along.
    Raises InputError where fewer than four users have as many.
    """
    numbers, classes, celled = [], [], 0
    told = f"domain.source.cells={each} need four users with {least + each} ratings of known items and {each} of new ones"
    each, least = each * (1 + beside), least * (1 + beside)

    def add(found: np.ndarray, homes: dict[str, str], asked: int = 0) -> None:
        numbers.append(found)
        classes.append(PoolClass(name, name, len(found), homes, asked))

    for own in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows[:, 0])) + 1):
        name = str(users[int(rows[own[0], 0])])
        strange = new[rows[own, 1].astype(np.int64)]
        known, unknown = own[~strange], own[strange]
        cells = each > 0 and len(known) >= least + each and len(unknown) >= each
        trained = known[:-each] if cells else known
        add(own, {split: split for split in ("val", "gate", "test")})
        if len(trained) >= least:
            add(trained, {"train": "train"})
        if cells:
            celled += 1
            for kind, asked in (("known", known[-each:]), ("new", unknown[-each:])):
                add(np.concatenate([trained, asked]), {"train": f"known-{kind}", "test": f"new-{kind}"}, len(trained))
    require(not each or celled >= 4, f"{told}, got {celled}. Lower cells or min_ratings.")
    return np.concatenate(numbers), classes
