"""Deployments on a real Prefect server with a real process worker, from a directory that is not the checkout.

Two version conflicts break only this: with SQLAlchemy 2.1 the scheduler never creates a run, with fastapi 0.151 `deploy` stops after its
first deployment.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from workspace import Workspace

from flows import paths
from flows.config import load

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def deployments() -> dict[str, dict]:
    return {d["name"]: d for d in yaml.safe_load((paths.CODE / "prefect.yaml").read_text())["deployments"]}


def test_the_deployments_are_the_named_ones_and_compose() -> None:
    found = deployments()
    assert {"nightly", "smoke", "gpu", "manual"} <= set(found)
    for deployment in found.values():
        module, _, name = deployment["entrypoint"].partition(":")
        assert hasattr(importlib.import_module(module), name)
        assert load(deployment["parameters"]["preset"]).data.write_pin is False  # deployed runs never touch the checkout
    assert found["nightly"]["schedules"][0]["cron"] and found["nightly"]["schedules"][0]["timezone"]
    assert found["gpu"]["work_pool"]["name"] != found["nightly"]["work_pool"]["name"]


class Server:
    """A Prefect server and a worker of their own, and the commands that talk to them."""

    def __init__(self, workspace: Workspace, elsewhere: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.workspace, self.elsewhere, self.url = workspace, elsewhere, f"http://127.0.0.1:{port}/api"
        self.environment = workspace.environment | {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(elsewhere / "home")}
        self.children: list[subprocess.Popen] = []
        self._spawn("server", "start", "--host", "127.0.0.1", "--port", str(port))
        self.wait(lambda: urllib.request.urlopen(f"{self.url}/health", timeout=2).status == 200, 180)

    def _spawn(self, *arguments: str) -> None:
        log = (self.elsewhere / f"{arguments[0]}.log").open("w")
        self.children.append(subprocess.Popen([*PREFECT, *arguments], cwd=self.elsewhere, env=self.environment, stdout=log, stderr=log, start_new_session=True))

    def work(self) -> None:
        self._spawn("worker", "start", "--pool", "local", "--type", "process", "--name", "tests")

    def command(self, *arguments: str, cwd: Path | None = None, timeout: int = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PREFECT, *arguments], cwd=cwd or self.elsewhere, env=self.environment, capture_output=True, text=True, timeout=timeout)

    def flow_runs(self, deployment: str) -> list[dict]:
        body = json.dumps({"deployments": {"name": {"any_": [deployment]}}}).encode()
        request = urllib.request.Request(f"{self.url}/flow_runs/filter", body, {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request, timeout=10).read())

    @staticmethod
    def wait(condition, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.5)

    def stop(self) -> None:
        for child in reversed(self.children):
            os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path, finished: Workspace) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("deployed")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    started = Server(Workspace(folder / "project", prefect_home, finished.root / "data"), elsewhere)
    try:
        for pool in ("local", "gpu"):
            assert started.command("work-pool", "create", pool, "--type", "process").returncode == 0
        started.work()
        yield started
    finally:
        started.stop()


@pytest.mark.slow
def test_all_deployments_are_made_without_a_prompt(server: Server) -> None:
    made = server.command("deploy", "--prefect-file", str(paths.CODE / "prefect.yaml"), "--all", cwd=paths.CODE)
    assert made.returncode == 0, made.stdout + made.stderr
    listed = server.command("deployment", "ls").stdout
    for name in deployments():
        assert name in listed


@pytest.mark.slow
def test_a_worker_runs_smoke_from_elsewhere_and_leaves_the_checkout_alone(server: Server) -> None:
    pin = (server.workspace.root / "data.dvc").read_bytes()
    ended = server.command("deployment", "run", "retrain/smoke", "-p", 'overrides=["seed=1"]', "--watch", timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr + (server.elsewhere / "worker.log").read_text()[-4000:]
    assert [run["state_type"] for run in server.flow_runs("smoke")] == ["COMPLETED"]
    client = server.workspace.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id])
    parents = [r for r in runs if r.data.tags["stage"] == "retrain"]
    assert len(parents) == 1
    assert (parents[0].data.params["experiment"], parents[0].data.params["seed"]) == ("smoke", "1")
    assert parents[0].data.tags["prefect.flow_run_id"] == server.flow_runs("smoke")[0]["id"]
    assert (server.workspace.root / "data.dvc").read_bytes() == pin


@pytest.mark.slow
def test_a_wrong_parameter_is_refused_before_a_run_is_made(server: Server) -> None:
    before = len(server.flow_runs("smoke"))
    ended = server.command("deployment", "run", "retrain/smoke", "-p", "overrides=5")
    assert ended.returncode != 0
    assert len(server.flow_runs("smoke")) == before


@pytest.mark.slow
def test_a_schedule_of_every_minute_fires(server: Server) -> None:
    before = {run["id"] for run in server.flow_runs("smoke")}
    made = server.command("deployment", "schedule", "create", "retrain/smoke", "--cron", "* * * * *", "--timezone", "UTC")
    assert made.returncode == 0, made.stdout + made.stderr

    def fired() -> bool:
        new = [run for run in server.flow_runs("smoke") if run["id"] not in before]
        assert not [run for run in new if run["state_type"] in ("FAILED", "CRASHED")], new
        return any(run["state_type"] == "COMPLETED" for run in new)

    server.wait(fired, 300)
