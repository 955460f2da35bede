"""The options of each domain: typed, validated, standard library only. Values live in conf/domain/."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.contracts import positive, require


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
        require(84 % self.size == 0, f"domain.source.size must divide 84 (the drawing canvas), got {self.size}. Use 28, 42 or 21.")
        require(84 % self.mesh == 0 and self.mesh >= 1, f"domain.source.mesh must divide 84, got {self.mesh}. Use 1, 2, 3 or 4.")
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


@dataclass
class ImageFolderOptions:
    """Pictures in `root`/<class>/* or `root`/<group>/<class>/*, brought to [size, size], grey or in `colour`.

    What cannot be used (files that are no pictures, links that lead out of the root, classes of fewer than `min_items` pictures) is
    refused, or skipped and counted, as `problems` says.
    """

    root: str | None
    size: int
    colour: bool
    min_items: int
    problems: Literal["refuse", "skip"]

    def __post_init__(self) -> None:
        require(14 <= self.size <= 224, f"domain.source.size must lie in [14, 224], got {self.size}. Use 28, 35, 64 or 84.")
        positive(**{"domain.source.min_items": self.min_items})

    @property
    def place(self) -> Path:
        """Return the root. Raises InputError where there is none."""
        require(self.root is not None, "domain.source.root must be a folder of pictures, one sub-folder a class, got none. Set domain.source.root=<folder>.")
        folder = Path(str(self.root))
        require(folder.is_dir(), f"domain.source.root must be a folder, got {folder}, which is none. Check the path.")
        return folder


def content(place: Path) -> str:
    """Return a digest of a file, or of every file under a folder by its path in it: the same files anywhere are the same data."""
    found = hashlib.sha256()
    for file in [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()):
        found.update(b"" if file == place else file.relative_to(place).as_posix().encode())
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


OPTIONS: dict[str, type] = {
    "glyphs": GlyphsOptions,
    "image_folder": ImageFolderOptions,
    "sinusoid": SinusoidOptions,
    **{name: OmniglotOptions for name in ("omniglot", "omniglot-small1", "omniglot-small2", "omniglot-across")},
}
