"""A whole system on ports of its own, started by `flows.serve` as a user would, and the commands that talk to it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from workspace import PATIENCE, Workspace, free_port

from flows.serve import ask

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def unscheduled(url: str) -> None:
    """Pause the schedules that are there: 03:00 may come while tests run, and no pipeline is to begin that none of them asks for."""
    for deployment in ask(f"{url}/deployments/filter", {}):
        for schedule in deployment["schedules"]:
            ask(f"{url}/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": False}, "PATCH")


class Server:
    """Prefect server, deployments, worker and MLflow of one workspace; commands run from a directory that is not the checkout."""

    def __init__(self, workspace: Workspace, elsewhere: Path) -> None:
        self.workspace, self.elsewhere, port = workspace, elsewhere, free_port()
        self.url, self.mlflow_port = f"http://127.0.0.1:{port}/api", free_port()
        workspace.environment |= {"PREFECT_HOME": str(elsewhere / "home"), "PREFECT_SERVER_API_PORT": port, "MLFLOW_PORT": self.mlflow_port}
        workspace.environment |= {"OMP_NUM_THREADS": "1"}
        self.environment = workspace.environment | {"PREFECT_API_URL": self.url}
        self.up = False

    def serve(self, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        self.up = True
        ended = self.workspace.run("flows.serve", expect=expect, **more)
        unscheduled(self.url)
        return ended

    def stop(self) -> str:
        self.up = False
        return self.workspace.run("flows.serve", "stop").stdout

    def processes(self, name: str = "") -> list[psutil.Process]:
        return self.workspace.processes(name)

    def command(self, *arguments: str, timeout: int = PATIENCE) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PREFECT, *arguments], cwd=self.elsewhere, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def ask(self, path: str, body: dict | None = None) -> list | dict:
        return ask(f"{self.url}/{path}", body)

    def flow_runs(self, deployment: str) -> list[dict]:
        return self.ask("flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})

    def told(self, run: str) -> str:
        """Return what Prefect's log of a flow run holds, as its page shows it."""
        lines = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
        return " ".join(line["message"] for line in lines)

    def log(self) -> str:
        return (self.workspace.root / "mlruns/logs/worker-local.log").read_text()[-4000:]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory, own_prefect: dict[str, str], finished: Workspace) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "elsewhere").mkdir()
    made = Server(Workspace(folder / "project", own_prefect, finished.root / "data"), folder / "elsewhere")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def server(system: Server) -> Server:
    """The system of this session, running."""
    if not system.up:
        system.first = system.serve()
    return system
