"""Stage outputs on disk, named by fingerprint: complete or absent, written by one process at a time, trusted only when intact."""

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components.contracts import StageRef
from components.inputs import InputError
from components.manifest import MANIFEST, file_digest, file_digests
from components.plain import fingerprint, flatten, from_plain, to_plain
from flows import paths

MOST = 8  # reasons that are told for running a stage


@dataclass(frozen=True)
class Key:
    """All that decides a stage's output: its config, what it is made from, and the component files that make it."""

    name: str
    stage: str
    section: dict[str, Any]
    upstream: dict[str, str]
    code: str

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.stage, self.section, self.upstream, self.code])

    @property
    def folder(self) -> Path:
        return paths.stages() / self.stage / self.fingerprint[:16]


@dataclass(frozen=True)
class Slot:
    """Where a stage writes: `partial` becomes the output, `state` outlives a crash and is dropped at the end."""

    partial: Path
    state: Path
    finished: StageRef | None


@cache
def _source(module: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a module's file, and the modules of `components` that it imports at module level."""
    path = paths.CODE.joinpath(*module.split("."))
    content = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_bytes()
    found: list[str] = []
    for node in ast.parse(content).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for name in (n for n in names if n.startswith("components")):
            found.append(name)
            if isinstance(node, ast.ImportFrom):
                children = (f"{name}.{alias.name}" for alias in node.names)
                found += [c for c in children if paths.CODE.joinpath(*c.split(".")).with_suffix(".py").exists()]
    return content, tuple(found)


@cache
def code_digest(*modules: str) -> str:
    """Return sha256 over the files of `components.*` that the given modules import at module level, themselves included.

    Modules that are loaded by name (learner families) are not followed: a stage names the ones that it uses.
    """
    seen: dict[str, bytes] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in seen:
            seen[module], imported = _source(module)
            todo += imported
    digest = hashlib.sha256()
    for module in sorted(seen):
        digest.update(module.encode() + b"\0" + seen[module] + b"\0")
    return digest.hexdigest()


def lookup(key: Key) -> StageRef | None:
    """Return the finished output of `key`, marked cached; None where it is absent or not what was written."""
    try:
        manifest = json.loads((key.folder / MANIFEST).read_text())
        if all(file_digest(key.folder / name) == digest for name, digest in manifest["files"].items()):
            ref = from_plain(StageRef, manifest["ref"])
            return dataclasses.replace(ref, name=key.name, path=str(key.folder), cached=True)  # another pipeline may have called it otherwise
    except (OSError, ValueError, KeyError):
        pass
    return None


@contextmanager
def writing(key: Key) -> Iterator[Slot]:
    """Give the one writer of `key` its slot. Raises InputError naming the owner when another process holds it.

    A finished output is handed back as it is; a damaged one is removed. Training state of an earlier, stopped run is left in place to resume from.
    """
    folder = key.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    owner = folder.with_suffix(".owner")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = owner.read_text() if owner.exists() else "another process"
        raise InputError(f"Stage {key.name} ({key.fingerprint[:8]}) needs to be its only writer, but {who} is writing it. Wait for it, or stop it.") from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        partial, finished = folder.with_suffix(".partial"), lookup(key)
        shutil.rmtree(partial, ignore_errors=True)
        if finished is None:
            shutil.rmtree(folder, ignore_errors=True)
            partial.mkdir()
        yield Slot(partial, folder.with_suffix(".state"), finished)
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def commit(key: Key, slot: Slot, run_id: str, seconds: float, metrics: dict[str, float]) -> StageRef:
    """Write the manifest, wait until the disk has it, rename the folder to its final name, drop the training state."""
    files = file_digests(slot.partial)
    ref = StageRef(key.name, key.stage, str(key.folder), key.fingerprint, fingerprint(files), run_id, round(seconds, 3), False, metrics)
    manifest = {"ref": to_plain(ref), "key": to_plain(key), "files": files, "finished": time.time()}
    path = slot.partial / MANIFEST
    with path.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(slot.partial, key.folder)
    shutil.rmtree(slot.state, ignore_errors=True)
    return ref


def why(key: Key) -> tuple[str, float | None]:
    """Say why a stage would run, by the values that differ from the output nearest to it, and how long that took (seconds).

    The nearest differs in the fewest values, and is the newest of those: other experiments and seeds leave outputs of the same stage.
    """
    manifests = []
    for path in (paths.stages() / key.stage).glob(f"*/{MANIFEST}"):
        try:
            manifests.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    differing = [(_changes(m["key"], to_plain(key)), m) for m in manifests if m["key"]["name"] == key.name]
    if not differing:
        return "never run", None
    changes, nearest = min(differing, key=lambda pair: (len(pair[0]), -pair[1]["finished"]))
    shown = changes[:MOST] + ([f"{len(changes) - MOST} more changes"] if len(changes) > MOST else [])  # another domain differs in everything
    return "; ".join(shown) or "output missing or damaged", float(nearest["ref"]["seconds"])


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what differs between two keys, one line each."""
    before, after = flatten(old["section"]), flatten(new["section"])
    values = [f"{k} {before.get(k)} -> {after.get(k)}" for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    upstream = [f"{name} changed" for name, value in new["upstream"].items() if old["upstream"].get(name) != value]
    return values + upstream + (["code changed"] if old["code"] != new["code"] else [])


def record_key(key: Key, records: Path, values: Path) -> str:
    """Return the name under which Prefect keeps the result, noting that an output is used.

    A record is forgotten whose output is no longer intact, or whose value is not in `values`, where Prefect looks: its home may have moved.
    """
    whole, record = lookup(key) is not None, records / key.fingerprint
    if whole:
        os.utime(key.folder / MANIFEST)
    try:
        value = Path(json.loads(record.read_text())["storage_key"])
        kept = whole and value.exists() and value.is_relative_to(values)
    except (OSError, ValueError, KeyError):
        kept = False
    if not kept:
        record.unlink(missing_ok=True)
    return key.fingerprint
