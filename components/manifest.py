"""What lies beside a stage's output and says what it is: with it, a file that was changed later is noticed. Standard library only."""

import hashlib
import json
from pathlib import Path

from components.inputs import require
from components.plain import fingerprint

MANIFEST = "stage.json"


def file_digest(path: Path) -> str:
    """Return sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def intact(folder: str | Path, registered: str | None = None) -> str:
    """Return the digest of an output's files; `registered` is the one that a registry tells.

    Raises InputError where they are not the files that the stage wrote. A folder without a manifest is what its owner says it is.
    """
    folder = Path(folder)
    found = fingerprint({name: digest for name, digest in file_digests(folder).items() if name != MANIFEST})
    manifest = folder / MANIFEST
    wanted = [registered] if registered else []
    wanted += [json.loads(manifest.read_text())["ref"]["digest"]] if manifest.exists() else []
    odd = [digest for digest in wanted if digest != found]
    require(not odd, f"{folder} must hold what was registered, digest {str(odd)[2:14]}, got {found[:12]}: files were changed. Register it again.")
    return found
