"""Where things lie: the code, what is told about it (conf/, prefect.yaml), and the project's root; never found from the current directory."""

import glob
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.inputs import InputError, require

CODE = Path(__file__).resolve().parent.parent  # of flows/ and components/
TOLD = "conf/config.yaml"
STALE = 86_400.0  # seconds after which nobody is at work on a file that is not in its place yet, or in a folder for the moment


def _house() -> Path:
    if (CODE / TOLD).exists():
        return CODE
    from importlib import metadata

    places = (Path(str(file.locate())).resolve() for file in metadata.files("fewloop") or () if file.as_posix().endswith(f"share/fewloop/{TOLD}"))
    return next((place.parent.parent for place in places), CODE)


HOUSE = _house()  # of conf/, prefect.yaml, automations.yaml, constraints.txt: the checkout, or where an installation put them


def typed(program: str) -> str:
    """Return a program of this environment as one would type it here: by its name where the shell finds it, or else by its path."""
    own, here = Path(sys.executable).with_name(program), Path.cwd()
    if shutil.which(program) == str(own):
        return program
    return str(own.relative_to(here) if own.is_relative_to(here) else own)


def made(target: str, module: str) -> str:
    """Return what one would type here for the Makefile's `target`, which runs `module`."""
    return f"make {target}" if Path.cwd() == HOUSE else f"{typed('python')} -m {module}"


def root() -> Path:
    """Return the folder that holds data.dvc, data/ and mlruns/: FEWLOOP_ROOT, or the checkout. Raises InputError where there is neither."""
    given = os.environ.get("FEWLOOP_ROOT")
    if not given and HOUSE != CODE:
        told = "FEWLOOP_ROOT must name the folder of data, runs and pin, since fewloop is installed and not a checkout; got nothing"
        raise InputError(f"{told}. Set it: FEWLOOP_ROOT=<folder, a git repository of yours>.")
    return Path(given or CODE).resolve()


def data() -> Path:
    return root() / "data"


def runs() -> Path:
    return Path(os.environ.get("FEWLOOP_RUNS") or root() / "mlruns").resolve()


def locks() -> Path:
    """Return the folder of the locks of data/: with the data, wherever runs lie, or two processes would hold two locks of the same data."""
    folder = root() / "mlruns"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
    return folder if os.access(folder, os.W_OK) else runs()  # where nothing can be written, nobody changes data


def writable() -> None:
    """Make the folder of runs. Raises InputError where nothing can be written there."""
    try:
        runs().mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(runs(), os.W_OK) else "a folder that may only be read"
    except OSError as error:
        reason = str(error)
    if reason:
        raise InputError(f"{runs()} must be writable, got {reason}. Change that, or set FEWLOOP_ROOT or FEWLOOP_RUNS to another folder.")


def stages() -> Path:
    return runs() / "stages"


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


@contextmanager
def into_place(target: Path) -> Iterator[Path]:
    """Give the name of a file or folder beside `target`, which is renamed into its place once it is written."""
    partial = _partial(target)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        discard(partial)
        raise


def discard(path: Path) -> None:
    """Remove a file or a folder that is of no use, where it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write(target: Path, text: str) -> None:
    """Leave this text in a file, whole or not at all."""
    with into_place(target) as partial:
        partial.write_text(text)


def swap(made: Path, target: Path) -> None:
    """Put a finished folder, perhaps of another disk, in the place of whatever is there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    shutil.move(str(made), target)
    shutil.rmtree(old, ignore_errors=True)


def target_file(out: str, *read: str) -> Path:
    """Return the file that is to be written, where a link points to.

    Raises InputError where it is a folder, a device or a pipe, cannot be written, or is read: itself, or as what is already in a folder that is.
    """
    target = Path(out)
    require(target.name != "" and not target.is_dir(), f"out must be a file, got {out or 'nothing'}, a folder. Name a file in it.")
    target = target.resolve() if target.is_symlink() else target  # renamed into the place of a link, it would leave the file behind it as it was
    require(not target.exists() or target.is_file(), f"out must be a file, got {out}, a device or a pipe. Name a file.")
    require(target.parent.is_dir(), f"out must lie in a folder that exists, got {target.parent}. Create it.")
    own = target.resolve()
    within = target.exists() and target.suffix.lower() != ".csv"  # of the tables that are written, one may replace the one before it
    same = [path for path in map(Path, read) if path.name and (path.resolve() == own or (within and own.is_relative_to(path.resolve())))]
    require(not same, f"out must be a file of its own, got {out}, which is read. Choose another name.")
    _writable(target, "out")
    return target


def target_folder(out: str, name: str = "out") -> Path:
    """Return the folder that is to be written. Raises InputError where there is something already, or nothing can be."""
    target = Path(out)
    require(target.parent.is_dir() and not target.exists(), f"{name} must be a new folder in one that exists, got {out}. Choose another name.")
    _writable(target, name)
    return target


def _writable(target: Path, name: str) -> None:
    """Raise InputError where nothing can be written beside the target: before the work, and not after it."""
    partial = _partial(target)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):  # by a process that was killed
        with suppress(OSError):  # it may be put into its place just now
            if time.time() - left.stat().st_mtime > STALE:
                discard(left)
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise InputError(f"{name} must be where files can be written, got {target}: {error.strerror}. Choose another place.") from error
