"""Where things lie: the project's root, found from this file or given by FEWLOOP_ROOT, never from the current directory."""

import os
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent


def root() -> Path:
    """Return the folder that holds data.dvc, data/ and mlruns/."""
    return Path(os.environ.get("FEWLOOP_ROOT") or CODE).resolve()


def data() -> Path:
    return root() / "data"


def runs() -> Path:
    return root() / "mlruns"


def stages() -> Path:
    return runs() / "stages"
