"""Omniglot: handwritten characters of many alphabets, 20 drawers each (Lake, Salakhutdinov and Tenenbaum 2015, Science 350).

A class is a character, its group the alphabet. Strokes are stored light on dark; `originals.npy` keeps the 105 x 105 drawings as packed
bits beside the pool's working size.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from components.domains.archives import DAMAGED, locate, read_member
from components.domains.options import OmniglotOptions
from components.domains.pool import PoolClass, Source
from components.inputs import InputError
from components.plain import one_line

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{}.zip"
# sha256 over every PNG in sorted order of its path: the path, then the 105 x 105 grey values.
DIGESTS = {
    "images_background": "6a06b86e260590cc26b434b0f64914b19d36700f4d85ea7efa75ff1516d9b38d",
    "images_evaluation": "3ac5fddd2b7e13c62d593788a36531447704c1441b5828e6303b65924150770c",
}
SIDE = 105


def read_archive(path: Path, wanted: str | None) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (alphabet, character, drawing [105, 105] uint8, dark strokes on light) in sorted order; check the digest at the end.

    Raises InputError where the archive is damaged, is not laid out as Omniglot is, or holds other drawings than `wanted` says.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".png"))
            for name in names:
                parts = name.split("/")
                if len(parts) != 4:
                    raise InputError(f"{path} must hold <archive>/<alphabet>/<character>/<drawing>.png, got {name}. Use the original archive.")
                with Image.open(io.BytesIO(read_member(archive, name, 2**20)), formats=["PNG"]) as picture:
                    drawing = np.asarray(picture.convert("L"), dtype=np.uint8)
                if drawing.shape != (SIDE, SIDE):
                    raise InputError(f"{path} must hold drawings of {SIDE} x {SIDE}, got {drawing.shape} in {name}. Use the original archive.")
                digest.update(name.encode())
                digest.update(drawing.tobytes())
                yield parts[1], parts[2], drawing
    except InputError:
        raise
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise InputError(f"{path} must be Omniglot's archive, got one that cannot be read: {one_line(error)}. Remove it and fetch it again.") from error
    if wanted is not None and digest.hexdigest() != wanted:
        raise InputError(f"{path} must hold the drawings with digest {wanted[:12]}, got {digest.hexdigest()[:12]} (altered). Remove it and fetch it again.")


def build(options: OmniglotOptions, mirror: str | None = None) -> Source:
    """Read the archives, keep the alphabets that are asked for, and bring the drawings to the working size by Pillow's box filter."""
    classes: dict[tuple[str, str], int] = {}
    originals, inputs = [], []
    for archive in ["images_background", *(["images_evaluation"] if options.evaluation else [])]:
        path = locate(f"omniglot/{archive}.zip", URL.format(archive), mirror)
        for alphabet, character, drawing in read_archive(path, DIGESTS[archive]):
            if options.alphabets and alphabet not in options.alphabets:
                continue
            light = 255 - drawing
            classes[alphabet, character] = classes.get((alphabet, character), 0) + 1
            originals.append(np.packbits(light > 127, axis=-1))
            small = Image.fromarray(light).resize((options.size, options.size), Image.Resampling.BOX)
            inputs.append(np.asarray(small, dtype=np.uint8))
    missing = sorted(set(options.alphabets) - {a for a, _ in classes})
    if missing:
        raise InputError(f"domain.source.alphabets names {', '.join(missing)}, which the archives lack. Set domain.source.evaluation=true, or leave them out.")
    listed = [PoolClass(f"{alphabet}/{character}", alphabet, count) for (alphabet, character), count in classes.items()]
    return Source(listed, np.stack(inputs), [""] * len(inputs), originals=np.stack(originals))
