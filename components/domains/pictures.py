"""Pictures from a folder, brought to the form in which a pool stores them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from components.inputs import InputError, require
from components.plain import describe, writable

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ["PNG", "JPEG", "WEBP"]  # Pillow has decoders of some forty others, and what guesses a format may guess any of them
LARGEST = 89_000_000  # pixels: some 2 GB while one is opened; of more, Pillow warns by itself
EIGHT_BITS = (np.arange(65_536) / 257).round().astype(np.uint8)


def read_picture(path: Path, size: int, colour: bool = False) -> np.ndarray:
    """Return one picture, its longer side scaled to fit, padded to a square: [size, size, 3] uint8 in colour, else [size, size], light on dark.

    What is transparent lies on white, or on black where what is not is light itself. Raises InputError naming a file that is not a picture,
    or one too large to open safely.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            small = width * height <= LARGEST
            picture = _opaque(ImageOps.exif_transpose(opened)).convert("RGB" if colour else "L") if small else opened
    except Exception as error:  # on damaged bytes a decoder raises what it likes: ValueError, SyntaxError, struct.error, ...
        raise InputError(f"{path} must be a PNG, JPEG or WebP picture, got one that cannot be read ({type(error).__name__}). Remove or replace it.") from error
    require(small, f"{path} must have {LARGEST:,} pixels at most, got {width} x {height}. Shrink it.")
    if not colour and np.asarray(picture).mean() > 127:  # dark strokes on light paper
        picture = ImageOps.invert(picture)
    return np.asarray(ImageOps.pad(picture, (size, size), Image.Resampling.BOX), dtype=np.uint8)


def _opaque(picture: Image.Image) -> Image.Image:
    """Return a picture of 8 bits without transparency: Pillow's own conversions cut 16 bits off at 255, and take what lies under transparency."""
    if picture.mode.startswith("I"):  # grey of 16 bits
        return Image.fromarray(EIGHT_BITS[np.asarray(picture).clip(0, 65_535)])
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    alpha, grey = np.asarray(picture.getchannel("A")), np.asarray(picture.convert("RGB").convert("L"))
    light = sum(int((row.astype(np.int64) - 127) @ shown.astype(np.int64)) for row, shown in zip(grey, alpha, strict=True)) > 0
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black" if light else "white"), picture)


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures directly in a folder, by name, hidden ones aside. Raises InputError where there are none."""
    require(folder.is_dir(), f"{folder} must be a folder of pictures, got no such folder. Check the path.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    _writable([p.name for p in found])
    require(len(found) > 0, f"{folder} must hold pictures ({', '.join(SUFFIXES)}), got none. Check the path.")
    return found


def listed(asked: str) -> list[Path]:
    """Return the pictures of a folder, or those that are named one by one, between commas. Raises InputError where one is missing."""
    if there(asked) and Path(asked).is_dir():
        return list_pictures(Path(asked))
    found = [Path(asked)] if there(asked) else [Path(name) for name in asked.split(",")]
    lacks = [str(path) for path in found if not there(path) or path.is_dir()]
    _writable([path.name for path in found])
    require(not lacks, f"query must be a folder of pictures, or pictures between commas, got {describe(lacks)}, which is no file. Check the path.")
    return found


def there(path: str | Path) -> bool:
    """Say whether there is such a file or folder; of many names side by side, longer than a name may be, there is none."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _writable(names: list[str]) -> None:
    """Raise InputError where a name cannot be written: bytes that are no UTF-8, say."""
    odd = [ascii(name) for name in names if not writable(name)]
    require(not odd, f"pictures and their folders need names that can be written, got {describe(odd)}. Rename them.")


def others(support: str, query: str) -> list[str]:
    """Return the names of files beside the pictures of a support and a query that are none by their suffix, and of folders in a query's, hidden ones aside."""
    inner = (*(Path(support).iterdir() if support else ()), *([Path(query)] if there(query) else []))
    folders = [folder for folder in inner if folder.is_dir() and not folder.name.startswith(".")]
    found = (p for folder in folders for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    deeper = (p for p in (Path(query).iterdir() if there(query) and Path(query).is_dir() else ()) if p.is_dir() and not p.name.startswith("."))
    return sorted([p.name for p in found if p.suffix.lower() not in SUFFIXES] + [f"{p.name}/" for p in deeper])


def read_support(folder: Path, size: int, colour: bool = False) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read `<folder>/<class>/*` into pictures [S, size, size] or [S, size, size, 3], labels [S] and the class names in order."""
    require(folder.is_dir(), f"support must be a folder with one sub-folder a class, got {folder}, which is no folder. Check the path.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    _writable(names)
    require(len(names) >= 2, f"support needs at least two sub-folders, one a class, got {len(names)} in {folder}. Add examples of another class.")
    pictures, labels = [], []
    for where in (folder, *(folder / name for name in names)):
        odd = [p.name for p in where.iterdir() if (p.suffix.lower() in SUFFIXES if where == folder else p.is_dir()) and not p.name.startswith(".")]
        require(not odd, f"support must hold pictures in sub-folders, one a class, got {describe(sorted(odd))} in {where}, which would be left out. Move them.")
    for label, name in enumerate(names):
        files = list_pictures(folder / name)
        pictures += [read_picture(f, size, colour) for f in files]
        labels += [label] * len(files)
    return np.stack(pictures), np.array(labels), names
