"""What a killed process leaves behind: runs that are said to be running, and children that go on. The next one on the same machine ends both."""

import contextlib
import os
import socket
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from flows.notices import say

OWNER = "FEWLOOP_OWNER"  # in the environment of all that a pipeline starts: whose they are


@cache
def own() -> str:
    """Return the name of this process that no other has had: its number, its start and the machine."""
    return f"{os.getpid()} {_started(os.getpid())} {socket.gethostname()}"


def here(name: str) -> bool:
    """Tell whether a process of that name is, or was, this machine's."""
    return name.endswith(f" {socket.gethostname()}")


def gone(name: str) -> bool:
    """Tell whether the process of that name is no more; of another machine's nobody here can say, so it is not."""
    number, started = (*name.split(" "), "", "")[:2]
    if not here(name) or not number.isdigit():
        return False
    return _started(int(number)) != started


def _started(number: int) -> str:
    """Return when a process began, to be compared and not read; empty where there is none, or it has ended and its parent has not noticed."""
    if sys.platform == "linux":  # ticks since boot, whatever happens to the clock
        try:
            state, *rest = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            return "" if state == "Z" else rest[18]
        except OSError:
            return ""
    try:
        process = psutil.Process(number)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.1f}"
    except psutil.NoSuchProcess:
        return ""


def claim() -> None:
    """Put this process's name into the environment of all that it starts."""
    os.environ[OWNER] = own()


def reap() -> int:
    """End the children of pipelines that were killed: servers, ranks, workers. Return how many."""
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            owner = process.environ().get(OWNER, "")
            if owner and gone(owner) and process.pid != os.getpid() and process.uids().real == os.getuid():
                orphans.append(process)
    for process in orphans:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(orphans, 10)
    return len(orphans)


def bury(store: Any, experiment: str) -> int:
    """Mark the runs of processes that are no more as failed, in MLflow and in Prefect. Return how many."""
    running = [r for r in store.search_runs([experiment], "attributes.status = 'RUNNING'") if gone(r.data.tags.get("process", ""))]
    for run in running:
        store.set_tag(run.info.run_id, "ended", "its process was gone")
        store.set_terminated(run.info.run_id, "FAILED")
    _crash([r.data.tags["prefect.flow_run_id"] for r in running if r.data.tags.get("stage") == "retrain"])
    if running:
        say(f"{len(running)} runs of processes that are gone were still said to be running: marked failed")
    return len(running)


def _crash(flow_runs: list[str]) -> None:
    """Mark Prefect's flow runs as crashed, where its server still says that they are under way."""
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    known = [UUID(name) for name in set(flow_runs) if name != "none"]
    if not known:
        return
    with get_client(sync_client=True) as client:
        for name in known:
            with contextlib.suppress(ObjectNotFound):  # another server's
                state = client.read_flow_run(name).state
                if state is not None and not state.is_final():
                    client.set_flow_run_state(name, Crashed(message="Its process was gone."), force=True)
