"""Sections and references as plain data, there and back, and the fingerprint that names every result. Standard library only."""

import dataclasses
import hashlib
import json
import re
import types
import typing
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar


def to_plain(value: Any) -> Any:
    """Turn sections, references and paths into plain dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


T = TypeVar("T")


def from_plain(kind: type[T], plain: Any) -> T:
    """Rebuild a dataclass from `to_plain`'s output."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        return typing.cast(T, None) if plain is None else from_plain(inner, plain)
    if origin in (list, tuple):
        item = typing.get_args(kind)[0]
        return typing.cast(T, origin(from_plain(item, v) for v in plain))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{k: from_plain(hints[k], v) for k, v in plain.items()})
    return typing.cast(T, plain)


def narrow(section: Any, kind: type[T]) -> T:
    """Return a section as the kind that it extends, without what it adds."""
    return kind(**{f.name: getattr(section, f.name) for f in dataclasses.fields(kind)})  # type: ignore[arg-type]


def fingerprint(value: Any) -> str:
    """Return sha256 (hex) of the canonical JSON of plain data: the same content gives the same name, whatever the order of keys."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys: {"a": {"b": 1}} -> {"a.b": 1}. Lists stay whole."""
    if not isinstance(plain, dict):
        return {prefix: plain}
    return {k: v for key, value in plain.items() for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def describe(names: Sequence[str], most: int = 5) -> str:
    """Return names in one line, the first `most` of them and how many more."""
    return " ".join(", ".join(names[:most]).split()) + (f" and {len(names) - most} more" if len(names) > most else "")


def writable(name: str) -> bool:
    """Say whether a name can be written as text in one line: no byte that is no UTF-8, no control character. A narrow blank, as in a Mac's screenshots, can."""
    return not any(unicodedata.category(one) in ("Cs", "Cc") for one in name)


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, at most 200 characters and without passwords; its name where it says nothing."""
    return next((masked(line.strip())[:200] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def masked(text: str) -> str:
    """Return a text as it may stand in a message or a log: without the passwords of addresses in it."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", re.sub(r"(password=)[^&\s]+", r"\1***", text))
