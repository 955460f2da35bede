"""A project folder of its own for a test: the pin, the data, and a place for runs; commands run in it as a user would type them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from flows import paths

SMOKE = "experiment=smoke"
PATIENCE = 900  # seconds until something has gone wrong, on the slowest machine and beside other work: nobody waits so long for what goes well


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until(found: Callable[[], object], seconds: float = PATIENCE, every: float = 0.1) -> None:
    """Wait until something is so, asking `every` so many seconds; while asking fails to reach anybody, it is not."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if found():
                return
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)


class Workspace:
    """A folder that FEWLOOP_ROOT points at. `run` starts `python -m <module> <arguments>` there and waits.

    `prefect` is where Prefect's things are: with PREFECT_HOME alone, every pipeline starts a server of its own and ends it, as a new user's do.
    """

    def __init__(self, folder: Path, prefect: Mapping[str, str], data: Path | None = None) -> None:
        self.root = folder
        (folder / ".dvc").mkdir(parents=True)
        shutil.copy(paths.CODE / "data.dvc", folder)
        shutil.copy(paths.CODE / ".dvcignore", folder)
        shutil.copy(paths.CODE / ".dvc" / "config", folder / ".dvc")
        (folder / "mlruns").mkdir()
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        if data is not None:
            shutil.copytree(data, folder / "data", copy_function=os.link)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "MLFLOW", "FEWLOOP"))}
        self.environment |= {"FEWLOOP_ROOT": str(folder), **prefect}

    def start(self, module: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, module: str, *arguments: str, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        process = self.start(module, *arguments, **more)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == expect, f"exit code {process.returncode}, wanted {expect}\n{out[-3000:]}\n{err[-6000:]}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def retrain(self, *overrides: str, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("flows.retrain", *overrides, expect=expect, **more)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Return every living process that was given this workspace and has `name` in its command."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("FEWLOOP_ROOT") == str(self.root) and process.status() != psutil.STATUS_ZOMBIE
                if ours and name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def draw_examples(self) -> None:
        """Leave what a user would adapt to: pictures of two classes under examples/, one more under unknown/."""
        pool = np.load(self.root / "data/glyphs/inputs.npy", mmap_mode="r")
        for folder, first in (("examples/a", 0), ("examples/b", 20), ("unknown", 40)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(pool[first])).save(self.root / folder / "1.png")

    def outputs(self, stage: str) -> list[dict]:
        """Return the manifests of a stage's outputs, oldest first."""
        found = [json.loads(p.read_text()) for p in (self.root / "mlruns" / "stages" / stage).glob("*/stage.json")]
        return sorted(found, key=lambda m: m["finished"])

    def metrics(self, stage: str = "evaluate") -> dict[str, float]:
        """Return the newest output's metrics, times aside."""
        return {k: v for k, v in self.outputs(stage)[-1]["ref"]["metrics"].items() if not k.endswith("/seconds")}

    def same(self, other: "Workspace") -> bool:
        """Tell whether the newest evaluation measured what the one of the same fingerprint did in another workspace, times aside."""
        made = self.outputs("evaluate")[-1]["ref"]
        wanted = next(m["ref"] for m in other.outputs("evaluate") if m["ref"]["fingerprint"] == made["fingerprint"])
        found, expected = ({k: v for k, v in one["metrics"].items() if not k.endswith("/seconds")} for one in (made, wanted))
        return found == expected

    def mlflow(self):
        from mlflow import MlflowClient

        return MlflowClient(self.environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlruns' / 'mlflow.db'}")


@pytest.fixture(scope="session")
def own_prefect(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No server that runs already. The home is one a session: its database is made once."""
    return {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}


@contextmanager
def prefect_server(home: Path, *flags: str, **more: str) -> Iterator[dict[str, str]]:
    """Run a Prefect server and give what leads there; `more` goes into its environment."""
    port, environment = free_port(), os.environ | {"PREFECT_HOME": str(home)} | more
    command = [sys.executable, "-m", "prefect", "--no-prompt", "server", "start", "--host", "127.0.0.1", "--port", port, *flags]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/api"
    try:
        until(lambda: server.poll() is not None or urllib.request.urlopen(f"{url}/health", timeout=5), every=0.5)
        assert server.poll() is None, "no Prefect server came up"
        yield {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server that runs already, one for the session: pipelines do not wait for one of their own."""
    with prefect_server(tmp_path_factory.mktemp("prefect-server"), "--no-services") as served:
        yield served


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, own_prefect: dict[str, str], prefect: dict[str, str]) -> Workspace:
    """A workspace where the smoke experiment has run once, with nothing there before it, as in a fresh clone."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "project", own_prefect)
    workspace.first = workspace.retrain(SMOKE)
    workspace.environment |= prefect
    return workspace


@pytest.fixture
def new_workspace(tmp_path: Path, prefect: dict[str, str], finished: Workspace) -> Callable[..., Workspace]:
    """Make workspaces that have data and pin, and no runs yet."""
    made: list[Workspace] = []

    def make(prefect: Mapping[str, str] = prefect) -> Workspace:
        made.append(Workspace(tmp_path / f"project-{len(made)}", prefect, finished.root / "data"))
        return made[-1]

    return make
