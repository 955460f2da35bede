"""Keep a copy of what no run can make again, and bring it back: `python -m flows.backup out=<file.tar>`, `python -m flows.backup restore=<file.tar>`"""

import io
import json
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from components.inputs import InputError, require
from components.plain import masked
from flows import cli, paths, tracking
from flows.paths import into_place
from flows.repository import PIN

HELP = """python -m flows.backup out=<file.tar> | restore=<file.tar>

`out` writes MLflow's database, its artifacts with every registered model, the stages' outputs, the pin, and Prefect's database into one file, also
while pipelines run. `restore` brings them back to the folder that they came from, where runs are no more. Data are not in it: `dvc push` keeps them.
  out       a new file
  restore   a file that `out` wrote
"""
ABOUT = "backup.json"
PASSING = {".lock", ".owner", ".partial", ".state"}


def backup(out: str = "", restore: str = "") -> None:
    """Write a backup, or bring one back."""
    require(bool(out) != bool(restore), "Either out=<file.tar> or restore=<file.tar> must be given. See --help.")
    require(
        tracking.uri().startswith("sqlite:///"),
        f"MLflow's database must be a file, got {masked(tracking.uri())}. Back it up with its own means, such as pg_dump.",
    )
    if out:
        _write(Path(out))
    else:
        _restore(Path(restore))


def _prefect() -> Path | None:
    """Return the file of Prefect's database; None where it is none, but on a server."""
    named = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL", "")
    if named:
        return Path(named.partition(":///")[2]) if named.startswith("sqlite") else None
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect") / "prefect.db"


def _databases() -> Iterator[tuple[str, Path]]:
    yield "mlruns/mlflow.db", Path(tracking.uri().removeprefix("sqlite:///"))
    own = _prefect()
    if own is None:
        print("Prefect's database is on a server, and in no backup of this: back it up with its own means, such as pg_dump", file=sys.stderr)
    elif own.exists():
        yield "prefect.db", own


def _write(target: Path) -> None:
    require(target.parent.is_dir() and not target.exists(), f"out must be a new file in a folder that exists, got {target}. Choose another name.")
    require(tracking.store_exists(), f"{tracking.uri()} must exist, got nothing there. Name the project with FEWLOOP_ROOT.")
    with into_place(target) as partial, tarfile.open(partial, "w") as tar, tempfile.TemporaryDirectory() as work:
        for name, file in _databases():  # first: what they name was written before, and is in what follows
            copy = Path(work) / "copy.db"
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(copy)) as kept:
                source.backup(kept)  # whole, whoever writes meanwhile
            tar.add(copy, name)
            copy.unlink()
        for file in sorted(_files()):
            with suppress(FileNotFoundError):  # what waited for MLflow has reached it, or an output was made again
                tar.add(file, f"mlruns/{file.relative_to(paths.runs()).as_posix()}")
        if (paths.root() / PIN).exists():
            tar.add(paths.root() / PIN, PIN)
        about = json.dumps({"root": str(paths.root()), "runs": str(paths.runs()), "made": time.time()}).encode()
        told = tarfile.TarInfo(ABOUT)  # last: a file without it was cut off
        told.size = len(about)
        tar.addfile(told, io.BytesIO(about))
    print(f"{target}: {target.stat().st_size / 2**20:.1f} MB of {paths.root()}")


def _files() -> Iterator[Path]:
    """Yield MLflow's artifacts, what stages have made, and what waits for MLflow."""
    for folder in (paths.runs() / "artifacts", paths.stages(), paths.runs() / "spool"):
        for place, folders, files in os.walk(folder):  # folders may go while they are walked
            folders[:] = [name for name in folders if Path(name).suffix not in PASSING]
            yield from (Path(place) / name for name in files if Path(name).suffix not in PASSING)


def _restore(file: Path) -> None:
    require(file.is_file(), f"restore must be a file that out=<file.tar> wrote, got {file}. See --help.")
    root = paths.root()
    root.mkdir(parents=True, exist_ok=True)  # of a disk that was lost
    with tempfile.TemporaryDirectory(dir=root, prefix=".restore-") as work:
        place = Path(work)
        try:
            with tarfile.open(file, "r:") as tar:
                tar.extractall(place, filter="data")  # nothing outside, no links out, no devices (PEP 706)
            told = json.loads((place / ABOUT).read_text())
            _ = told["root"], told["made"]
        except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"restore must be a whole file that out=<file.tar> wrote, got {file} ({error}). Use another one.") from error
        same = f"restore must happen where the backup was made, {told['root']}, since runs name their files with the whole path; got {root}. "
        require(Path(told["root"]) == root, f"{same}Set FEWLOOP_ROOT={told['root']}.")
        runs = told.get("runs", str(paths.runs()))  # a backup of before did not say
        require(
            Path(runs) == paths.runs(), f"restore must bring runs back to {runs}, as they name their files so; got {paths.runs()}. Set FEWLOOP_RUNS={runs}."
        )
        require(not tracking.store_exists(), f"restore must find no runs, got {tracking.uri()}. Move {paths.runs()} away first.")
        _bring(place / PIN, root / PIN)
        own = _prefect()
        if own is not None and own.exists():
            print(f"{own} is left as it is: there is one", file=sys.stderr)
        elif own is not None:
            _bring(place / "prefect.db", own)
        database = place / "mlflow.db"
        shutil.move(place / "mlruns" / "mlflow.db", database)
        _bring(place / "mlruns", paths.runs())
        _bring(database, Path(tracking.uri().removeprefix("sqlite:///")))  # last: without it there are no runs
    print(f"{root} is as it was {time.strftime('%Y-%m-%d %H:%M', time.localtime(told['made']))}")


def _bring(source: Path, target: Path) -> None:
    """Move a file or a folder's contents to their place, over what is there of the same name."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for child in source.iterdir():
            _bring(child, target / child.name)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)  # to another disk too


if __name__ == "__main__":
    cli.entry(backup, sys.argv[1:], HELP)
