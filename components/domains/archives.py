"""Archives that a domain is built from: found in a mirror, else downloaded once; either way checked by what they hold, not by their bytes."""

import http.client
import os
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from components.inputs import InputError

# What reading a damaged archive, or one of another content, may raise.
DAMAGED = (OSError, EOFError, LookupError, ValueError, AttributeError, RuntimeError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile)
LARGEST = 2**30  # bytes of one member, unpacked


def read_member(archive: zipfile.ZipFile, name: str, most: int = LARGEST) -> bytes:
    """Return one member, unpacked in memory. Raises BadZipFile where it says that it is larger than `most`; what it does not say is not read."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise zipfile.BadZipFile(f"{name} of {size:,} bytes, of at most {most:,}")
    return archive.read(name)


def locate(name: str, url: str, mirror: str | None) -> Path:
    """Return the path of archive `<domain>/<file>`: under the mirror where one is given, else downloaded into the user's cache.

    Raises InputError where the mirror lacks it or the download fails.
    """
    if mirror is not None:
        path = Path(mirror) / name
        if not path.is_file():
            raise InputError(f"mirror={mirror} must hold {name}, got no such file. Put it there, or leave out mirror to download it from {url}.")
        return path
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewloop" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, partial.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
            announced, came = answer.headers.get("Content-Length"), file.tell()
        if announced is not None and came != int(announced):  # read a block at a time, an answer that ends too early is no error
            raise http.client.IncompleteRead(b"", int(announced) - came)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{name} must be downloaded from {url}, got: {error}. Put it under a folder and set mirror=<that folder>.") from error
    os.replace(partial, path)
    return path
