"""A project folder of its own for a test: the pin, the data, and a place for runs; commands run in it as a user would type them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import paths

SMOKE = "experiment=smoke"


class Workspace:
    """A folder that FEWLOOP_ROOT points at. `run` starts `python -m <module> <arguments>` there and waits."""

    def __init__(self, folder: Path, prefect_home: Path, data: Path | None = None) -> None:
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
        self.environment |= {"FEWLOOP_ROOT": str(folder), "PREFECT_HOME": str(prefect_home)}

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
        out, err = process.communicate(timeout=600)
        assert process.returncode == expect, f"exit code {process.returncode}, wanted {expect}\n{out[-3000:]}\n{err[-6000:]}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def retrain(self, *overrides: str, expect: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run("flows.retrain", *overrides, expect=expect, **more)

    def outputs(self, stage: str) -> list[dict]:
        """Return the manifests of a stage's outputs, oldest first."""
        found = [json.loads(p.read_text()) for p in (self.root / "mlruns" / "stages" / stage).glob("*/stage.json")]
        return sorted(found, key=lambda m: m["finished"])

    def metrics(self, stage: str = "evaluate") -> dict[str, float]:
        """Return the newest output's metrics, times aside."""
        return {k: v for k, v in self.outputs(stage)[-1]["ref"]["metrics"].items() if not k.endswith("/seconds")}

    def mlflow(self):
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.root / 'mlruns' / 'mlflow.db'}")


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One Prefect home a session: its database is made once."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Workspace:
    """A workspace where the smoke experiment has run once, data built from the source as in a fresh clone."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "project", prefect_home)
    workspace.first = workspace.retrain(SMOKE)
    return workspace


@pytest.fixture
def new_workspace(tmp_path: Path, prefect_home: Path, finished: Workspace) -> Callable[[], Workspace]:
    """Make workspaces that have data and pin, and no runs yet."""
    made: list[Workspace] = []

    def make() -> Workspace:
        made.append(Workspace(tmp_path / f"project-{len(made)}", prefect_home, finished.root / "data"))
        return made[-1]

    return make
