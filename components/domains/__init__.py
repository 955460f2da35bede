"""Domains: where items come from, and how stored items become a network's input. One file a problem family, loaded by name."""

import importlib
from types import ModuleType

from components.inputs import InputError

DOMAINS = {
    "control": "components.domains.control",
    "glyphs": "components.domains.glyphs",
    "image_folder": "components.domains.image_folder",
    **{name: "components.domains.ratings" for name in ("ratings", "clicks")},
    "sinusoid": "components.domains.sinusoid",
    "table": "components.domains.table",
    **{name: "components.domains.omniglot" for name in ("omniglot", "omniglot-small1", "omniglot-small2", "omniglot-across")},
}


def alike(one: str, other: str) -> bool:
    """Say whether two domains name the same classes alike: variants of one, made by the same file, do."""
    return DOMAINS.get(one, one) == DOMAINS.get(other, other)


def load_domain(name: str) -> ModuleType:
    """Return the domain's module: `build(options, mirror) -> Source`."""
    if name not in DOMAINS:
        raise InputError(f"domain must be one of {', '.join(sorted(DOMAINS))}, got {name!r}. Choose one of them.")
    return importlib.import_module(DOMAINS[name])
