"""Which classes took part in making a learner: its own training classes, and those of whatever it began from, joins, or was taught by."""

from collections.abc import Iterable, Sequence
from typing import Any

from components.domains import alike


def lineage(domain: str, trained: Sequence[str], before: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what a learner keeps of its classes; `before`: what the learners behind it say of themselves."""
    earlier: dict[str, set[str]] = {}
    for about in before:
        for of, names in _told(about):
            earlier.setdefault(of, set()).update(names)
    earlier.get(domain, set()).difference_update(trained)
    left = {of: sorted(names) for of, names in sorted(earlier.items()) if names}
    return {"domain": domain, "trained_on": [*trained]} | ({"earlier": left} if left else {})


def trained_on(about: dict[str, Any], domain: str) -> set[str]:
    """Return the classes of a domain, or of a variant of it, that took part in making a learner."""
    return {name for of, names in _told(about) if alike(of, domain) for name in names}


def _told(about: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [(about["domain"], about["trained_on"]), *about.get("earlier", {}).items()]
