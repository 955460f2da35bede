"""The user's own pictures: `<root>/<class>/*` or `<root>/<group>/<class>/*`, PNG, JPEG or WebP of any size."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from components.domains.options import ImageFolderOptions
from components.domains.pictures import SUFFIXES, read_picture
from components.domains.pool import PoolClass, Source
from components.inputs import InputError, require
from components.notices import tell
from components.plain import describe, writable


def class_folders(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield (name, group, folder) of every class, in order; without groups all are of group `pictures`.

    Raises InputError where pictures lie beside sub-folders, or some classes have a group and others none.
    """
    inner = {folder: _folders(folder) for folder in _folders(root)}
    for folder in (root, *inner):
        loose = [p.name for p in _files(folder)]
        require(not loose or not _folders(folder), f"{folder} must hold pictures or sub-folders, got both ({describe(loose, 2)}). Move the pictures.")
    grouped = [folder for folder, own in inner.items() if own]
    require(
        len(grouped) in (0, len(inner)),
        f"{root} must be laid out as <class>/* or as <group>/<class>/*, got both ({grouped[0].name if grouped else ''} has sub-folders). Choose one.",
    )
    for folder, own in inner.items():
        if own:
            yield from ((f"{folder.name}/{one.name}", folder.name, one) for one in own)
        else:
            yield folder.name, "pictures", folder


def build(options: ImageFolderOptions, mirror: str | None = None) -> Source:
    """Read every picture at the working size. Raises InputError naming what cannot be used, unless it is to be skipped."""
    root = options.place
    classes, inputs, notes, problems = [], [], [], []

    def shown(file: Path) -> str:
        return str(file.relative_to(root)).encode(errors="backslashreplace").decode()

    for name, group, folder in class_folders(root):
        read = []
        if not writable(name):
            problems.append(f"class {name!a} (a name that cannot be written)")
            continue
        if any(one.is_symlink() for one in (folder, folder.parent) if one != root):  # the same pictures could train under one name and test under another
            problems.append(f"class {name} (a linked folder)")
            continue
        for file in _others(folder):
            problems.append(f"{shown(file)} ({'a folder in that of a class' if file.is_dir() else 'no picture'})")
        for file in _files(folder):
            if not writable(file.name):
                problems.append(f"{shown(file)} (a name that cannot be written)")
                continue
            if not file.resolve().is_relative_to(root.resolve()):
                problems.append(f"{shown(file)} (a link out of the folder)")
                continue
            try:
                read.append((read_picture(file, options.size, options.colour), file.name))
            except InputError:
                problems.append(f"{shown(file)} (cannot be read)")
        if len(read) < options.min_items:
            problems.append(f"class {name} ({len(read)} pictures, needs {options.min_items})")
            continue
        classes.append(PoolClass(name, group, len(read)))
        inputs += [picture for picture, _ in read]
        notes += [note for _, note in read]
    if problems and options.problems == "refuse":
        raise InputError(f"{root} must hold pictures alone, got {len(problems)} that cannot be used: {describe(problems)}. Or domain.source.problems=skip.")
    if problems:
        tell(f"{root}: {len(problems)} skipped: {describe(problems)}")
    groups = Counter(c.name.rpartition("/")[2] for c in classes)
    shared = sorted(name for name, count in groups.items() if count > 1)
    if shared:
        told = f"{len(shared)} class names are in several groups ({describe(shared)}): a class of its own in each, split by itself"
        tell(f"{root}: {told}. Where they mean the same, put a class's pictures into one folder.")
    require(len(classes) >= 2, f"{root} must hold at least two classes of {options.min_items} pictures, got {len(classes)}. Add sub-folders.")
    return Source(classes, np.stack(inputs), notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _others(folder: Path) -> list[Path]:
    """Return what is neither hidden nor named as a picture."""
    return sorted(p for p in folder.iterdir() if (p.is_dir() or p.suffix.lower() not in SUFFIXES) and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
