"""A backup that is taken while a pipeline runs is whole, and comes back: the champion answers as before, and nothing is trained again."""

import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from workspace import PATIENCE, SMOKE, Workspace

from components.inputs import InputError
from flows import backup as module
from flows import tracking
from flows.backup import backup

FEW = [SMOKE, "student.count=0", "evaluation.settings=[5w1s]"]
ASKED = ["model=models:/glyphs@champion", "domain=glyphs", *FEW]


@pytest.mark.slow
def test_a_project_comes_back_from_its_backup(new_workspace: Callable[..., Workspace], own_prefect: dict[str, str], tmp_path: Path) -> None:
    workspace = new_workspace(own_prefect | {"PREFECT_HOME": str(tmp_path / "home")})
    workspace.retrain(*FEW)
    scored = workspace.run("flows.evaluate", *ASKED).stdout
    waits = workspace.root / "mlruns" / "spool" / "0" / "refused.jsonl"
    waits.parent.mkdir(parents=True)
    waits.write_text("{}\n")
    writing = workspace.start("flows.retrain", *FEW, "seed=1")
    file = tmp_path / "kept.tar"
    assert str(file) in workspace.run("flows.backup", f"out={file}").stdout
    writing.communicate(timeout=PATIENCE)
    runs = workspace.root / "mlruns"
    assert "must find no runs" in workspace.run("flows.backup", f"restore={file}", expect=2).stderr
    shutil.rmtree(runs)
    shutil.rmtree(tmp_path / "home")
    (workspace.root / "data.dvc").unlink()
    assert str(workspace.root) in workspace.run("flows.backup", f"restore={file}").stdout
    assert (tmp_path / "home" / "prefect.db").exists() and waits.read_text() == "{}\n"
    assert workspace.run("flows.evaluate", *ASKED).stdout == scored
    told = workspace.retrain(*FEW)
    assert "ran: nothing" in told.stdout
    assert not list(workspace.root.glob(".restore-*")) and not list(runs.rglob("*.partial"))


def test_what_is_no_backup_is_told_and_changes_nothing(new_workspace: Callable[..., Workspace], finished: Workspace, tmp_path: Path) -> None:
    workspace: Workspace = new_workspace()
    kept = tmp_path / "kept.tar"
    finished.run("flows.backup", f"out={kept}")
    with tarfile.open(tmp_path / "climbs.tar", "w") as tar:
        tar.add(__file__, "../outside.py")
    (tmp_path / "cut.tar").write_bytes(kept.read_bytes()[:100_000])
    (tmp_path / "text.tar").write_text("not a tar")
    before = {p: p.stat().st_mtime for p in workspace.root.rglob("*") if p.is_file()}
    for arguments, told in (
        ([f"restore={kept}"], f"must happen where the backup was made, {finished.root}"),
        *(([f"restore={tmp_path / name}.tar"], "must be a whole file") for name in ("climbs", "cut", "text")),
        (["restore=nowhere"], "must be a file"),
        ([f"out={kept}"], "must be a new file"),
        ([f"out={tmp_path / 'other.tar'}"], "must exist"),
        ([f"out={kept}", f"restore={kept}"], "Either"),
    ):
        assert told in workspace.run("flows.backup", *arguments, expect=2).stderr, arguments
    assert {p: p.stat().st_mtime for p in workspace.root.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "outside.py").exists() and not (tmp_path / "other.tar").exists()


def test_a_backup_comes_back_after_the_disk_is_lost_and_prefects_database_lies_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, other = tmp_path / "project", tmp_path / "other.db"
    project.mkdir()
    monkeypatch.setenv("FEWLOOP_ROOT", str(project))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{other}")
    with closing(sqlite3.connect(other)) as made:
        made.execute("create table told (word)")
    tracking.open_store("glyphs")
    backup(out=str(tmp_path / "kept.tar"))
    tracking.client.cache_clear()
    shutil.rmtree(project)
    other.unlink()
    backup(restore=str(tmp_path / "kept.tar"))
    assert tracking.store().get_experiment_by_name("glyphs") is not None
    with closing(sqlite3.connect(other)) as back:
        assert back.execute("select name from sqlite_master").fetchall() == [("told",)]
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://me:S3cret@host/prefect")
    backup(out=str(tmp_path / "again.tar"))
    assert "Prefect's database is on a server" in capsys.readouterr().err
    tracking.client.cache_clear()


def test_a_database_elsewhere_comes_back_to_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "other").mkdir()
    for name, value in (
        ("FEWLOOP_ROOT", tmp_path / "project"),
        ("PREFECT_HOME", tmp_path / "home"),
        ("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/my.db"),
    ):
        monkeypatch.setenv(name, str(value))
    tracking.open_store("glyphs")
    files = module._files
    monkeypatch.setattr(module, "_files", lambda: [*files(), tmp_path / "project/mlruns/spool/sent.jsonl"])  # gone since it was found
    backup(out=str(tmp_path / "kept.tar"))
    tracking.client.cache_clear()
    with monkeypatch.context() as patched:
        patched.setenv("FEWLOOP_RUNS", str(tmp_path / "runs"))
        with pytest.raises(InputError, match=f"bring runs back to {tmp_path}/project/mlruns.*got {tmp_path}/runs. Set FEWLOOP_RUNS="):
            backup(restore=str(tmp_path / "kept.tar"))
    (tmp_path / "other" / "my.db").unlink()
    shutil.rmtree(tmp_path / "project" / "mlruns")
    backup(restore=str(tmp_path / "kept.tar"))
    assert tracking.store().get_experiment_by_name("glyphs") is not None
    assert not (tmp_path / "project" / "mlruns" / "mlflow.db").exists()
    tracking.client.cache_clear()


def test_a_database_server_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:S3cret@host/db")
    with pytest.raises(InputError, match="must be a file, got postgresql://me:") as told:
        backup(out="x.tar")
    assert "S3cret" not in str(told.value)
