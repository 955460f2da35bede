"""Installed from a wheel, away from any checkout: the same config, the same code, the same fingerprints."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from workspace import PATIENCE, SMOKE, Workspace

ROOT = Path(__file__).parent.parent
SHIPPED = ["pyproject.toml", "README.md", "prefect.yaml", "automations.yaml", "constraints.txt"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment where the wheel is installed, beside the packages that fewloop needs."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("flows", "components", "conf", "deploy"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SHIPPED:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", *folder.glob("*.whl")], check=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], check=True, capture_output=True, text=True)
    (Path(own.stdout.strip()) / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def run(python: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment.pop("PYTHONPATH", None)
    return subprocess.run([python, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_an_installation_knows_what_a_checkout_has_trained(installed: Path, finished: Workspace, tmp_path: Path) -> None:
    """The fingerprints say that code and config are the same. Another package called flows, where one stands, is not taken for ours."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise RuntimeError('another one')")
    told = run(installed, tmp_path, "-m", "flows.retrain", SMOKE, "--dry-run", **finished.environment)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) == 9 and all(line.split()[1] == "cached" for line in told.stdout.splitlines()), told.stdout
    where = "import flows.paths as p; print(p.CODE, p.HOUSE)"
    code, house = run(installed, tmp_path, "-c", where, **finished.environment).stdout.split()
    assert Path(code).is_relative_to(installed.parent.parent) and Path(house) == installed.parent.parent / "share" / "fewloop"
    for file in [*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("deploy/*"), *(ROOT / name for name in SHIPPED[2:])]:
        assert (Path(house) / file.relative_to(ROOT)).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_an_installation_asks_where_to_write(installed: Path, finished: Workspace, tmp_path: Path) -> None:
    environment = {k: v for k, v in finished.environment.items() if k != "FEWLOOP_ROOT"}
    told = run(installed, tmp_path, "-m", "flows.retrain", SMOKE, **environment)
    assert told.returncode == 2 and told.stderr.startswith("error: FEWLOOP_ROOT must name the folder"), told.stderr
    assert not list(tmp_path.iterdir()) and not list(installed.parent.parent.glob("lib/*/site-packages/mlruns"))
