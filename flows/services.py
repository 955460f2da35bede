"""Long-lived processes of this project: started in sessions of their own, found again by a mark in their environment, ended to the last child.

The mark is all the state there is: no pid file can be stale, no reused pid is taken for ours, and what a dead service left behind is found.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from components.inputs import InputError
from flows import paths
from flows.ui import free

MARK, ADDRESS = "FEWLOOP_SERVICE", "FEWLOOP_SERVICE_ADDRESS"
PATIENCE = 300.0  # seconds until a service must be healthy: a busy machine imports for minutes
GRACE = 20.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Service:
    """A process: its command, where users find it, the port that it needs (empty: none) and the variable that sets it.

    `healthy` asks it, by its address and by when it was started (seconds since the epoch), whether it is well.
    `keeps`: what it started goes on where it died itself, as flow runs do; all others are ended before it is started again.
    """

    name: str
    command: list[str]
    address: str
    healthy: Callable[[str, float], bool]
    port: str = ""
    variable: str = ""
    keeps: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def logs() -> Path:
    return paths.runs() / "logs"


def processes(name: str | None = None) -> list[psutil.Process]:
    """Return the living processes of a service of this project, whatever became of the one that started them; of all services where no name is given."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
            if mark.endswith(f"@{paths.root()}") and name in (None, mark.partition("@")[0]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # another user's, or gone
            continue
    return found


def names() -> set[str]:
    """Return the names of the services of this project that have living processes."""
    found = set()
    for process in processes():
        with contextlib.suppress(psutil.Error, OSError, KeyError):  # it may have ended meanwhile
            found.add(process.environ()[MARK].partition("@")[0])
    return found


def leader(service: Service) -> psutil.Process | None:
    """Return the service's own process, on whatever port it was started; None where it is dead."""
    for process in processes(service.name):
        try:
            if os.getsid(process.pid) == process.pid and process.cmdline()[1:5] == service.command[1:5]:
                return process
        except (psutil.Error, OSError):
            continue
    return None


def address(process: psutil.Process) -> str:
    """Return where a service said that it would be found when it was started."""
    with contextlib.suppress(psutil.Error, OSError):  # it may have ended meanwhile
        return str(process.environ().get(ADDRESS, ""))
    return ""


def check_port(port: str, what: str, remedy: str) -> None:
    """Raise InputError unless `port` is a number and free on 127.0.0.1. `remedy`: what stands before another."""
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"The port of {what} must be a number from 1 to 65535, got {port!r}. Use {remedy}5000.")
    free("127.0.0.1", int(port), f" for {what}", remedy)


def start(service: Service) -> None:
    """Start a service and wait until it is healthy. Raises RuntimeError with its last words where it is not, and leaves nothing of it."""
    if not service.keeps:
        end(service.name)
    if service.port:
        check_port(service.port, service.name, f"{service.variable}=")
    logs().mkdir(parents=True, exist_ok=True)
    log = logs() / f"{service.name}.log"
    own = {MARK: f"{service.name}@{paths.root()}", ADDRESS: service.address, "FEWLOOP_ROOT": str(paths.root())}
    began = time.time()
    with log.open("a") as out:
        child = subprocess.Popen(
            service.command,
            cwd=logs(),
            env=os.environ | service.environment | own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    while child.poll() is None and time.time() < began + PATIENCE:
        if is_healthy(service, service.address, began):
            return
        time.sleep(0.25)
    how = f"ended with exit code {child.returncode}" if child.returncode is not None else f"was not healthy after {PATIENCE:.0f} s"
    if child.returncode is None:
        end(service.name)
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise RuntimeError(f"{service.name} {how}; the end of {log}: {said[-1] if said else 'nothing'}")


def is_healthy(service: Service, where: str, since: float) -> bool:
    """Ask a service whether it is well; one that cannot be asked is not."""
    try:
        return service.healthy(where, since)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def end(name: str | None = None) -> int:
    """End a service (all where no name is given) with all that it started: SIGTERM to the groups, SIGKILL after `GRACE`. Return how many processes."""
    ended: set[int] = set()
    deadline, sent = time.monotonic() + GRACE, signal.SIGTERM
    while left := processes(name):
        if fresh := {p.pid for p in left} - ended if sent == signal.SIGTERM else {p.pid for p in left}:
            for pid in fresh:
                _signal(pid, sent)
            ended |= fresh
        psutil.wait_procs(left, 0.2)
        if time.monotonic() > deadline:
            sent = signal.SIGKILL
    return len(ended)


def _signal(pid: int, number: int) -> None:
    """Signal a process and, where it leads one, its group."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass
