"""Remove what nothing needs any more: `python -m flows.gc days=30`"""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from components.inputs import InputError
from components.manifest import MANIFEST
from flows import cli, paths
from flows.repository import PIN
from flows.versions import newest_pins

FOREIGN = 7 * 86_400.0  # seconds

HELP = """python -m flows.gc days=<number> [dry=true]

Removes stages' outputs, training states and versions of data that no run has used for so many days, what killed processes left, and says how much that is.
Kept whatever their age: what a registered model version was made from, each stage's newest output, what a pipeline or sweep that is
running has used, and data that a registered version, this checkout or a commit of it pins. Remotes and MLflow's own runs stay as they are
(see `mlflow gc`).
  days   0 removes all that is not kept
  dry    (optional) true: say what would go, remove nothing
"""


def collect(days: str, dry: str = "false") -> None:
    """Find what may go, and remove it. Raises InputError where an argument is none."""
    from components.inputs import require
    from flows import tracking

    require(days.isdecimal(), f"days must be a whole number, got {days!r}. Use days=30.")
    require(dry in ("true", "false"), f"dry must be true or false, got {dry!r}. Leave it out.")
    store = tracking.store() if tracking.store_exists() else None
    before = min(time.time() - 86_400 * int(days), _oldest_start(store) if store else math.inf)
    versions = [v for m in _models(store) for v in tracking.versions(m.name)] if store else []
    outputs = [*unused_outputs(before, {v.tags.get(tag, "") for v in versions for tag in ("fingerprint", "evaluation")})]
    pins = [_pin(v) for v in versions if "retrain.run_id" in v.tags]
    data = [*unused_data(before, [*pins, *_own_pins()])]
    scratch = [*scraps(min(before, time.time() - paths.STALE))]
    freed, gone = 0, []
    for kind in (outputs, data, scratch):
        sizes = [_remove(path, before, dry == "true") for path in kind]
        freed += sum(size for size in sizes if size is not None)
        gone.append(sum(size is not None for size in sizes))
    told = "would free" if dry == "true" else "freed"
    parts = f"{gone[0]} outputs and states of stages, {gone[1]} files of data that nothing pins, {gone[2]} folders of killed processes"
    print(f"{told} {freed / 2**20:.1f} MB: {parts}")


def _models(store: Any) -> Iterator[Any]:
    """Yield all registered models: the store tells them page by page."""
    token = None
    while True:
        page = store.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _pin(version: Any) -> str:
    """Return the pin of the data that a registered version was made from. Raises InputError where it cannot be read: its data could go for good."""
    from components.inputs import InputError
    from flows import tracking

    text = tracking.run_artifact(version.tags["retrain.run_id"], PIN)
    if text is None:
        told = f"{PIN} of {version.name} version {version.version} must be readable, or its data would be removed; got none with its run"
        raise InputError(f"{told} {version.tags['retrain.run_id']}. Make MLflow's artifacts reachable, or delete that version.")
    return text


def _oldest_start(store: Any) -> float:
    """Return when the oldest pipeline or sweep began that is still running; what they take from earlier ones they mark as used.

    Of another machine's nobody here can say whether it still runs: a week holds for all.
    """
    from flows import leftovers

    running = store.search_runs([e.experiment_id for e in store.search_experiments()], "attributes.status = 'RUNNING' AND tags.process != ''")
    alive = [run for run in running if not leftovers.gone(run.data.tags["process"])]
    own = [run for run in alive if leftovers.here(run.data.tags["process"]) or time.time() - run.info.start_time / 1000 < FOREIGN]
    if oldest := min(own, key=lambda run: run.info.start_time, default=None):
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(oldest.info.start_time / 1000))
        print(f"run {oldest.info.run_id} is running since {since}: what was used since stays", file=sys.stderr)
    return oldest.info.start_time / 1000 if oldest else math.inf


def unused_outputs(before: float, registered: Iterable[str]) -> Iterator[Path]:
    """Yield outputs, states and records of stages that nothing used since and that no registered fingerprint was made from."""
    manifests: dict[str, dict[str, Any]] = {}
    for path in paths.stages().glob(f"*/*/{MANIFEST}"):
        try:
            manifests[path.parent.name] = json.loads(path.read_text()) | {"folder": path.parent, "used": path.stat().st_mtime}
        except (OSError, ValueError):
            continue  # a damaged output is the next run's to make again
    newest: dict[str, str] = {}
    for name, told in sorted(manifests.items(), key=lambda item: float(item[1]["finished"])):
        newest[told["key"]["name"]] = name
    todo, kept = [*newest.values(), *(f[:16] for f in registered), *(n for n, m in manifests.items() if m["used"] > before)], set()
    while todo:
        name = todo.pop()
        if name in manifests and name not in kept:
            kept.add(name)
            todo += [fingerprint[:16] for fingerprint in manifests[name]["key"]["upstream"].values()]
    yield from (told["folder"] for name, told in manifests.items() if name not in kept)
    for state in (p for kind in ("state", "partial") for p in paths.stages().glob(f"*/*.{kind}")):
        if state.stat().st_mtime <= before and _free(state.with_suffix(".lock")):
            yield state
    for record in (paths.stages() / "records").glob("*"):
        if record.name[:16] not in kept and record.is_file() and record.stat().st_mtime <= before:
            yield record


def unused_data(before: float, pins: Iterable[str]) -> Iterator[Path]:
    """Yield files of the cache that nothing used since and that none of the pins names."""
    cache, kept = paths.root() / ".dvc" / "cache" / "files" / "md5", set()
    for text in pins:
        for out in yaml.safe_load(text).get("outs", []):
            whole = cache / out["md5"][:2] / out["md5"][2:]
            kept.add(whole)
            if whole.exists():
                kept |= {cache / entry["md5"][:2] / entry["md5"][2:] for entry in json.loads(whole.read_text())}
    yield from (path for path in cache.glob("*/*") if path not in kept and path.stat().st_mtime <= before)


def scraps(before: float) -> Iterator[Path]:
    """Yield folders for the moment that were made before then: who is killed leaves one behind."""
    for kind in ("newest", "build", "evaluate", "dvc"):
        yield from (path for path in paths.runs().glob(f".{kind}-*") if path.is_dir() and path.stat().st_mtime <= before)


def _own_pins() -> Iterator[str]:
    """Yield the pin of the checkout, those of all its commits, and those of the newest data."""
    yield from newest_pins()
    own = paths.root() / PIN
    if own.exists():
        yield own.read_text()
    commits = subprocess.run(["git", "log", "--all", "--format=%H", "--", PIN], cwd=paths.root(), capture_output=True, text=True)
    if commits.returncode != 0 and any((folder / ".git").exists() for folder in (paths.root(), *paths.root().parents)):
        told = f"git must tell which versions of {PIN} were committed, or their data would be removed; got: {commits.stderr.strip()}"
        raise InputError(f"{told}. Make git answer in {paths.root()}.")
    for commit in commits.stdout.split():
        shown = subprocess.run(["git", "show", f"{commit}:./{PIN}"], cwd=paths.root(), capture_output=True, text=True)
        if shown.returncode == 0:
            yield shown.stdout


def _free(lock: Path) -> bool:
    """Tell whether nobody holds the lock."""
    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def _remove(path: Path, before: float, dry: bool) -> int | None:
    """Remove a file or folder and return its bytes; None where somebody has used it since it was found, as a pipeline that began meanwhile."""
    of_stage = path.is_dir() and path.parent.parent == paths.stages()
    lock = FileLock(path.with_suffix(".lock"), timeout=0) if of_stage else nullcontext()
    try:
        with lock:
            marked = path / MANIFEST if (path / MANIFEST).exists() else path
            return None if marked.stat().st_mtime > before else _removed(path, dry)
    except (Timeout, FileNotFoundError):
        return None


def _removed(path: Path, dry: bool) -> int:
    """Remove a file or folder, unless `dry`, and return its bytes."""
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    if dry:
        return size
    if path.is_dir():
        (path / MANIFEST).unlink(missing_ok=True)  # first: an output without it is none, so a half removed one is never taken for whole
        shutil.rmtree(path)
    else:
        path.unlink()
    return size


if __name__ == "__main__":
    cli.entry(collect, sys.argv[1:], HELP)
