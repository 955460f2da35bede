"""Which split a class belongs to: a function of names alone, so that new data move nothing."""

import hashlib
from collections.abc import Sequence

from components.contracts import SplitsSection
from components.inputs import require

NONE = "none"  # of classes that no split takes


def split_of(splits: SplitsSection, group: str, name: str) -> str:
    """Return the split of a class, all groups that may train training. A split that names its groups takes no share of the others."""
    for split in ("val", "gate", "test"):
        if group in getattr(splits, split):
            return split
    place = _place(f"split {name}")
    for split, share in sorted(splits.shares.items()):
        place -= 0 if getattr(splits, split) else share
        if place < 0:
            return split
    return "train"


def homes(splits: SplitsSection, classes: Sequence[tuple[str, str]]) -> list[str]:
    """Return the split of every class (group, name). Raises InputError where `splits.train` asks for more groups than could train.

    The groups that train are nested: those of a smaller `splits.train` are among those of a larger one.
    """
    found = [split_of(splits, group, name) for group, name in classes]
    if splits.train is None:
        return found
    able = {group for (group, _), home in zip(classes, found, strict=True) if home == "train"}
    require(splits.train <= len(able), f"domain.splits.train must be at most {len(able)}, the groups that could train, got {splits.train}. Lower it.")
    kept = set(sorted(able, key=lambda group: _place(f"train {group}"))[: splits.train])
    return [NONE if home == "train" and group not in kept else home for (group, _), home in zip(classes, found, strict=True)]


def _place(text: str) -> float:
    """Return a number in [0, 1) that is the text's alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
