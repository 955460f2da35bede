"""From nothing to a running system: `python -m flows.serve`, and `python -m flows.serve stop`

Prefect server, its deployments and automations, a worker a pool, MLflow: each healthy before the next begins, all on 127.0.0.1.
"""

import base64
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any

from filelock import FileLock

from components.inputs import InputError
from flows import NO_PAGES, cli, deploy, paths, services, tracking, ui
from flows.deploy import ANSWER
from flows.services import Service

PATIENCE = 60.0  # seconds for one that is there to become well

HELP = """python -m flows.serve [stop]

Starts what is not running yet, in the background, waits until each is healthy, and says where it is: Prefect server, deployments, workers, MLflow.
`stop` ends them all. Ports: PREFECT_SERVER_API_PORT (4200), MLFLOW_PORT (5000). A server of yours is used instead where PREFECT_API_URL or
MLFLOW_TRACKING_URI (http) names one. Logs are in mlruns/logs.
"""


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    """Return the JSON that an address of Prefect's API answers with, None where it answers with nothing: GET, or POST where there is a body.

    A server whose database is busy answers 503, which means: ask again. Raises urllib.error.URLError.
    """
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers, method=method)
    deadline = time.monotonic() + ANSWER
    while True:
        try:
            with urllib.request.urlopen(request, timeout=ANSWER) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=ANSWER) as answer:
        return bool(answer.status == 200)


def _at_work(api: str, pool: str, name: str, since: float) -> bool:
    """Tell whether a worker has reported to the server since it was started."""
    for worker in ask(f"{api}/work_pools/{pool}/workers/filter", {}):
        if worker["name"] == name and worker["status"] == "ONLINE":
            return datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > since
    return False


def prefect_server() -> Service | None:
    """Return the Prefect server, None where PREFECT_API_URL names another one."""
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    own, given = f"http://127.0.0.1:{port}/api", os.environ.get("PREFECT_API_URL", "").rstrip("/")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", port]
    asked = os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    pages = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}"} if asked == NO_PAGES else {}
    address, well = f"http://127.0.0.1:{port}", lambda url, _: _answers(f"{url}/api/health")
    service = Service("prefect-server", command, address, well, port, "PREFECT_SERVER_API_PORT", environment=pages)
    return service if given in ("", own) else None


def mlflow_server() -> Service | None:
    """Return the MLflow server, None where MLFLOW_TRACKING_URI names another one. Pipelines write to its database themselves: it may go and come."""
    if tracking.uri().startswith("http"):
        return None
    port = os.environ.get("MLFLOW_PORT", "5000")
    return Service(
        "mlflow", ui.command(port), f"http://127.0.0.1:{port}", lambda url, _: _answers(f"{url}/health"), port, "MLFLOW_PORT", environment=ui.environment()
    )


def worker(api: str, pool: str) -> Service:
    """Return the worker of a pool. Flow runs outlive it, and end by themselves."""
    name = f"fewloop-{pool}"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start", "--pool", pool, "--name", name]
    environment = {"PREFECT_API_URL": api, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")}
    return Service(f"worker-{pool}", command, f"pool {pool}", lambda _, since: _at_work(api, pool, name, since), keeps=True, environment=environment)


def _ensure(service: Service) -> tuple[str, str]:
    """Start a service unless it is there; return its address and `started` or `already running`. Raises RuntimeError where it is there but not well."""
    found = services.leader(service)
    if found is None:
        print(f"{service.name}: starting", file=sys.stderr, flush=True)
        services.start(service)
        return service.address, "started"
    where, deadline = services.address(found), time.monotonic() + PATIENCE
    while not services.is_healthy(service, where, 0.0):
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{service.name} is running (process {found.pid}) but has not answered for {PATIENCE:.0f} s. Run make stop, then make serve-flows."
            )
        time.sleep(0.25)
    return where, "already running"


def _api(server: Service | None) -> str:
    """Return the address of Prefect's API: of our server, on the port that it was started on, or of the one that PREFECT_API_URL names."""
    if server is None:
        return os.environ["PREFECT_API_URL"].rstrip("/")
    found = services.leader(server)
    return f"{services.address(found) if found else server.address}/api"


def _deploy(api: str) -> str:
    """Put deployments and automations on the server, unless it has just these, made from this folder, and none was removed."""
    try:
        if ask(f"{api}/variables/name/{deploy.VARIABLE}")["value"] == deploy.digest():
            asked = {"deployments": {"name": {"any_": sorted(deploy.names())}}}
            if {one["name"] for one in ask(f"{api}/deployments/filter", asked)} == deploy.names():
                return "already there"
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
    print("deployments: making them", file=sys.stderr, flush=True)
    deploy.deploy()
    return "made"


def serve() -> None:
    """Start what is missing. Raises InputError where a port is taken or a server that the environment names does not answer."""
    paths.runs().mkdir(parents=True, exist_ok=True)
    with FileLock(paths.runs() / "serve.lock"):  # waits: two calls at once start one system
        server, mlflow = prefect_server(), mlflow_server()
        for service in (s for s in (server, mlflow) if s is not None):  # before any of them is started
            if not services.processes(service.name):
                services.check_port(service.port, service.name, f"{service.variable}=")
        rows = [("Prefect", *_ensure(server))] if server else []
        api = os.environ["PREFECT_API_URL"] = _api(server)
        deploy.check_answers(api)
        made = _deploy(api)
        for pool in deploy.pools():
            if pool != "gpu" or shutil.which("nvidia-smi"):
                rows.append((f"worker {pool}", *_ensure(worker(api, pool))))
        tracking.open_store("Default")
        rows += [("MLflow", *_ensure(mlflow))] if mlflow else []
        lists = ui.pages(mlflow.address) if mlflow else []
    for name, where, how in rows:
        print(f"{name:<13} {where} ({how})")
    print(f"{'deployments':<13} {api} ({made})", f"{'logs':<13} {services.logs()}", *(f"{name:<13} {page}" for name, page in lists), sep="\n")
    if all(how == "already running" for *_, how in rows):
        print("everything was running already")
    print(f"next: export PREFECT_API_URL={api}; {paths.typed('prefect')} deployment run 'retrain/smoke' --watch; {paths.made('stop', 'flows.serve stop')}")


def stop() -> None:
    """End everything: workers before the server that their runs report to."""
    paths.runs().mkdir(parents=True, exist_ok=True)
    with FileLock(paths.runs() / "serve.lock"):
        names = services.names()
        count = sum(services.end(name) for name in sorted(names, reverse=True))  # workers first
        count += services.end()
    print(f"stopped {', '.join(sorted(names))}: {count} processes" if count else "nothing was running")


def main(arguments: list[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        print(HELP, end="")
    elif arguments not in ([], ["stop"]):
        raise InputError(f"flows.serve takes nothing, or stop, got {' '.join(arguments)!r}. See --help.")
    else:
        (stop if arguments else serve)()


if __name__ == "__main__":
    cli.guarded(lambda: main(sys.argv[1:]))
