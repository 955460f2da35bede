"""Domain `glyphs`: the characters of the DejaVu and STIX fonts, organised by script as Omniglot is by alphabet.

This is type, not handwriting: real letter designs in several styles, each item bent by a fixed jitter. Every byte comes from integer
arithmetic and Pillow's C transforms; torch kernels, whose rounding differs between processors, are kept out of anything versioned.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from components.domains.options import GlyphsOptions
from components.domains.pool import PoolClass, Source
from components.draws import below, bits, key_of

# Groups are Unicode blocks that a reader would call one script or one alphabet; characters with a canonical decomposition (accented
# letters) and blocks of near-regular patterns (Braille, hexagrams, dominoes, box drawing) are left out.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x24F), (0x1E00, 0x1EFF)),
    "Latin_phonetic": ((0x250, 0x2AF), (0x1D00, 0x1D7F)),
    "Latin_medieval": ((0x2C60, 0x2C7F), (0xA720, 0xA7FF)),
    "Greek": ((0x370, 0x3E1), (0x3F0, 0x3FF)),
    "Coptic": ((0x3E2, 0x3EF),),
    "Cyrillic": ((0x400, 0x52F), (0xA640, 0xA69F)),
    "Armenian": ((0x531, 0x58F),),
    "Hebrew": ((0x5D0, 0x5F4),),
    "Arabic": ((0x620, 0x77F),),
    "NKo": ((0x7C0, 0x7FF),),
    "Lao": ((0xE80, 0xEFF),),
    "Georgian_Asomtavruli": ((0x10A0, 0x10CF),),
    "Georgian_Mkhedruli": ((0x10D0, 0x10FF),),
    "Georgian_Nuskhuri": ((0x2D00, 0x2D2F),),
    "Canadian_Aboriginal": ((0x1400, 0x167F),),
    "Ogham": ((0x1680, 0x169F),),
    "Tifinagh": ((0x2D30, 0x2D7F),),
    "Lisu": ((0xA4D0, 0xA4FF),),
    "Old_Italic": ((0x10300, 0x1032F),),
    "Letterlike": ((0x2100, 0x214F),),
    "Mathematical_Fraktur": ((0x1D504, 0x1D537),),
    "Mathematical_Double_Struck": ((0x1D538, 0x1D56B),),
    "Digits": ((0x30, 0x39),),
    "Currency": ((0x20A0, 0x20CF),),
    "Arrows": ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F)),
    "Operators": ((0x2200, 0x22FF), (0x27C0, 0x27EF), (0x2980, 0x2AFF)),
    "Technical": ((0x2300, 0x23FF),),
    "Geometric": ((0x25A0, 0x25FF), (0x2B00, 0x2BFF)),
    "Miscellaneous_Symbols": ((0x2600, 0x26FF),),
    "Dingbats": ((0x2700, 0x2775), (0x2794, 0x27BF)),
}

CANVAS = 84  # glyphs are drawn and bent on a finer canvas (3x for size 28), then averaged down by whole numbers
EM = 58  # font size in pixels on the canvas


@dataclass(frozen=True)
class Style:
    """One font file opened at the drawing size, with the characters it covers."""

    name: str
    font: ImageFont.FreeTypeFont
    covers: frozenset[int]


def font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"


def open_styles(names: list[str], folder: Path) -> list[Style]:
    """Open the named fonts. Raises FileNotFoundError naming the font that is missing."""
    styles = []
    for name in names:
        path = folder / f"{name}.ttf"
        if not path.exists():
            raise FileNotFoundError(f"domain.fonts names {name!r}, but {folder} has no {path.name}.")
        font = ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)
        with TTFont(path, lazy=True) as table:
            styles.append(Style(name, font, frozenset(table.getBestCmap())))
    return styles


def draw(style: Style, code: int) -> Image.Image | None:
    """Draw one character centred on the canvas, ink white on black; None where nothing is drawn or it does not fit."""
    left, top, right, bottom = style.font.getbbox(chr(code))
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    image = Image.new("L", (CANVAS, CANVAS), 0)
    origin = ((CANVAS - width) // 2 - left, (CANVAS - height) // 2 - top)
    ImageDraw.Draw(image).text(origin, chr(code), fill=255, font=style.font)
    if width > CANVAS - 6 or height > CANVAS - 6:  # a few wide signs: shrink to fit rather than cut them
        side = int(max(width, height))
        whole = Image.new("L", (side, side), 0)
        ImageDraw.Draw(whole).text(((side - width) // 2 - left, (side - height) // 2 - top), chr(code), fill=255, font=style.font)
        image.paste(whole.resize((CANVAS - 6, CANVAS - 6), Image.Resampling.BOX), (3, 3))
    return image if image.getbbox() else None


def jitter(image: Image.Image, key: np.uint64, options: GlyphsOptions) -> Image.Image:
    """Bend one drawing: stroke thickness, then one mesh that carries the affine and the elastic part together.

    Displacements are whole canvas pixels divided by 64, from counter-based draws, so the mesh is the same everywhere.
    """
    nodes, zoom = options.mesh + 1, CANVAS // options.size
    count = 8 + 2 * nodes * nodes  # the eighth is not used: without it every drawing would be another
    draws = below(bits(key, np.arange(count, dtype=np.uint64)), 2001).astype(np.int64) - 1000  # thousandths in [-1, 1]
    if draws[0] < 20 * options.thickness_percent - 1000:
        image = image.filter(ImageFilter.MaxFilter(3))
    scale_x, scale_y = (1000 + draws[1:3] * options.scale_percent // 100).tolist()
    shear_x, shear_y = (draws[3:5] * options.shear_percent // 100).tolist()
    shift_x, shift_y = (draws[5:7] * options.shift_tenths * zoom * 64 // 10_000).tolist()
    bend = (draws[8:] * options.elastic_tenths * zoom * 64 // 10_000).reshape(2, nodes, nodes)
    step = CANVAS // options.mesh
    grid = (np.arange(nodes) * step - CANVAS // 2) * 64
    x = grid[None, :] * scale_x // 1000 + grid[:, None] * shear_x // 1000 + shift_x + bend[0] + CANVAS // 2 * 64
    y = grid[:, None] * scale_y // 1000 + grid[None, :] * shear_y // 1000 + shift_y + bend[1] + CANVAS // 2 * 64
    mesh = []
    for row in range(options.mesh):
        for col in range(options.mesh):
            corners = ((row, col), (row + 1, col), (row + 1, col + 1), (row, col + 1))  # Pillow: NW, SW, SE, NE
            quad = tuple(v / 64 for r, c in corners for v in (int(x[r, c]), int(y[r, c])))
            mesh.append(((col * step, row * step, (col + 1) * step, (row + 1) * step), quad))
    return image.transform((CANVAS, CANVAS), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def reduce(image: Image.Image, size: int) -> np.ndarray:
    """Average the canvas down to [size, size] uint8 by whole-number boxes."""
    return np.asarray(image.reduce(CANVAS // size), dtype=np.uint8)


def candidates(options: GlyphsOptions) -> Iterator[tuple[str, int]]:
    """Yield (script, code point) of every character that may become a class, in code-point order within a script."""
    for script, ranges in SCRIPTS.items():
        if script in options.leave_out:
            continue
        for first, last in ranges:
            for code in range(first, last + 1):
                char = chr(code)
                if unicodedata.decomposition(char) and not unicodedata.decomposition(char).startswith("<font>"):
                    continue
                if unicodedata.category(char)[0] in "LNS" and unicodedata.category(char) not in ("Lm", "Sk"):
                    yield script, code


def build(options: GlyphsOptions, mirror: str | None = None) -> Source:
    """Draw the whole pool: every class with `items_per_class` items, its styles taken in turn.

    A class needs `min_styles` fonts that draw it to something other than the font's missing-glyph box; a class that is pixel-identical
    to an earlier one in any style is dropped (look-alikes across scripts: A in Latin, Greek and Cyrillic).
    """
    styles = open_styles(options.fonts, font_folder())
    boxes = {style.name: reduce(box, options.size).tobytes() for style in styles if (box := draw(style, 0x10FFFF))}
    seen: set[bytes] = set()
    classes: list[PoolClass] = []
    images: list[np.ndarray] = []
    item_styles: list[str] = []
    for script, code in candidates(options):
        drawn = [(s, image) for s in styles if code in s.covers and (image := draw(s, code)) is not None]
        plain = {s.name: reduce(image, options.size).tobytes() for s, image in drawn}
        drawn = [(s, image) for s, image in drawn if plain[s.name] != boxes.get(s.name)]
        if len({plain[s.name] for s, _ in drawn}) < options.min_styles or any(plain[s.name] in seen for s, _ in drawn):
            continue
        seen.update(plain[s.name] for s, _ in drawn)
        for item in range(options.items_per_class):
            style, image = drawn[item % len(drawn)]
            bent = jitter(image, key_of("glyphs", options.render_seed, code, item), options)
            images.append(reduce(bent, options.size))
            item_styles.append(style.name)
        name = f"U+{code:04X} {unicodedata.name(chr(code), 'UNNAMED')}"
        classes.append(PoolClass(name=f"{script}/{name}", group=script, count=options.items_per_class))
    return Source(classes=classes, inputs=np.stack(images), item_notes=item_styles)
