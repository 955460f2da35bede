"""What MLflow does not take at the moment: kept on disk in order, and given to it as soon as it answers. Training goes on meanwhile."""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from components.inputs import InputError
from flows import leftovers, paths
from flows.notices import say

RETRY = 60.0  # seconds between attempts while it does not answer: one at a locked sqlite takes 20
OWN = "spooled-"  # how the name of a run begins that MLflow has not heard of


class UnansweredError(Exception):
    """MLflow, or the database behind it, did not answer; what it was told may be told again."""


class RefusedError(Exception):
    """MLflow answered that it will not take this, now or later."""


class Spool:
    """The writes of this process, and of processes that are no more. One file a process, a line a write; the folder belongs to one store.

    `do(name, values)` makes one write and returns the id of the run that it opened, if it did. It raises UnansweredError, RefusedError,
    or OSError where there is no room.
    """

    def __init__(self, folder: Path, do: Callable[[str, dict[str, Any]], str | None]) -> None:
        self.folder, self.do = folder, do
        self.file = folder / f"{leftovers.own().replace(' ', '_')}.jsonl"
        self.lock = threading.RLock()
        self.retry = 0.0  # when to try again

    def write(self, name: str, values: dict[str, Any]) -> str | None:
        """Make a write, or keep it where MLflow does not answer or earlier ones of this process wait; what it refuses is kept aside, and work goes on.

        Raises RefusedError where it refuses to open a run. Returns the id of the run that it opened: where the write waits, a name that `known` turns into
        the id later.
        """
        with self.lock:
            if not self.file.exists() or (time.monotonic() >= self.retry and not self.replay()):
                try:
                    return self.do(name, self.known(values))
                except UnansweredError as error:
                    self._later(error)
                except RefusedError as error:  # the run was deleted, or a database put back that is older than it
                    if name == "begin":
                        raise
                    self._refused({"write": name, "values": values, "run": None}, str(error))
                    return None
            own = OWN + uuid.uuid4().hex if name == "begin" else None
            self._append(self.file, {"write": name, "values": values, "run": own})
            return own

    def waits(self) -> bool:
        """Tell whether writes of this process wait for MLflow."""
        return self.file.exists()

    def replay(self) -> int:
        """Make the writes that wait, of this process and of those that are gone, and return how many of this process wait still."""
        if not self.folder.exists():
            return 0
        with self.lock, contextlib.suppress(Timeout, UnansweredError), FileLock(self.folder / "lock", timeout=0):
            moved = True
            while moved:  # a run may be another process's, and be opened only now
                moved = any([self._drain(file) for file in self._files()])
        return len(_lines(self.file))

    def settle(self, patience: float) -> None:
        """Wait until MLflow has everything of this process. Raises InputError when it has not answered for `patience` seconds."""
        deadline, told = time.monotonic() + patience, 0.0
        while self.file.exists() and (waiting := self.replay()):
            if time.monotonic() >= deadline:
                required = f"MLflow must answer before a model is registered, got none for {patience:.0f} s"
                raise InputError(f"{required}. Start it, and the same command again: finished stages are kept, and so are {waiting} entries for it.")
            if time.monotonic() >= told:
                say(f"waiting up to {deadline - time.monotonic():.0f} s for MLflow, to register the model")
                told = time.monotonic() + 60
            time.sleep(min(1.0, RETRY))

    def known(self, values: Any) -> Any:
        """Put the ids of runs in the place of names given while MLflow did not answer. Raises UnansweredError where a run still waits."""
        if isinstance(values, dict):
            return {key: self.known(value) for key, value in values.items()}
        if not isinstance(values, str) or not values.startswith(OWN):
            return values
        try:
            return (self.folder / "runs" / values).read_text()
        except FileNotFoundError as error:
            raise UnansweredError("the run was not opened yet") from error

    def _files(self) -> Iterator[Path]:
        for file in sorted(self.folder.glob("*_*_*.jsonl")):
            if file == self.file or leftovers.gone(" ".join(file.stem.split("_", 2))):
                yield file

    def _drain(self, file: Path) -> bool:
        """Make a file's writes in order, as far as its runs are there; tell whether any was made. Raises UnansweredError when MLflow stops answering."""
        lines, done = _lines(file), 0
        try:
            for line in lines:
                try:
                    entry = json.loads(line)
                except ValueError:  # half of a line that a full disk cut, and the next one after it
                    self._append(self.folder / "refused.jsonl", {"line": line, "reason": "it is damaged"})
                    say(f"a line of what waited for MLflow is damaged; kept in {self.folder / 'refused.jsonl'}")
                    done += 1
                    continue
                try:
                    values = self.known(entry["values"])
                except UnansweredError:
                    return done > 0
                try:
                    self._make(entry | {"values": values})
                except RefusedError as error:
                    self._refused(entry, str(error))
                    if entry["run"]:  # what is told of a run that will never be is refused as well, and holds nothing up
                        self._opened(entry["run"], entry["run"])
                done += 1
        except UnansweredError as error:
            self._later(error)
            raise
        finally:
            _replace(file, lines[done:])
        if lines:
            say(f"MLflow answers: {len(lines)} entries that waited are given to it")
        return done > 0

    def _make(self, entry: dict[str, Any]) -> None:
        if entry["run"] and (self.folder / "runs" / entry["run"]).exists():  # opened just before a death
            return
        made = self.do(entry["write"], entry["values"])
        if entry["run"]:
            self._opened(entry["run"], str(made))

    def _opened(self, own: str, run_id: str) -> None:
        place = self.folder / "runs" / own
        place.parent.mkdir(exist_ok=True)
        _replace(place, [run_id])

    def _refused(self, entry: dict[str, Any], reason: str) -> None:
        self._append(self.folder / "refused.jsonl", entry | {"reason": reason})
        say(f"MLflow refuses what it is told, {entry['write']}: {reason}; kept in {self.folder / 'refused.jsonl'}")

    def _append(self, file: Path, entry: dict[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(entry) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def _later(self, error: UnansweredError) -> None:
        if not self.file.exists():
            say(f"MLflow does not answer ({error}): what it is told waits in {self.folder}, and work goes on")
        self.retry = time.monotonic() + RETRY


def _lines(file: Path) -> list[str]:
    """Return the whole lines of a file; one that a power cut left without its end is none."""
    try:
        return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _replace(file: Path, lines: list[str]) -> None:
    """Leave these lines in a file, at once; no file where there are none."""
    if not lines:
        file.unlink(missing_ok=True)
        return
    paths.write(file, "".join(lines))
